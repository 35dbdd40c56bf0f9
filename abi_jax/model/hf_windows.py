"""Which layers of a `config.json` see a sliding window, in the several ways that is written."""

from abi_jax.errors import InputError
from abi_jax.model.hf_fields import Fields


def read_windows(f: Fields, kind: str, usual: int | None, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Returns the window and the layers it applies to; `usual` is the window of a `config.json` that names none.

    Raises `InputError` for layer types that are not known or that `kind` does not have.
    """
    window = f.whole("sliding_window", 0) if "sliding_window" in f else usual
    if kind in ("qwen2", "qwen3") and not f.flag("use_sliding_window", False):
        window = None
    types = f.raw.get("layer_types")
    if kind == "llama":
        default = [False] * layers
    elif kind == "mistral":
        default = [bool(window)] * layers
    elif kind == "gemma2":
        default = [i % 2 == 0 for i in range(layers)]
    else:
        full = f.whole("max_window_layers", 28, minimum=0) if window else layers
        default = [i >= full for i in range(layers)]
    if types is None:
        marked = default
    else:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
            raise InputError(f"layer_types is {types!r}; expected {layers} of {', '.join(known)}, one a layer")
        marked = [t == "sliding_attention" for t in types]
        if kind in ("llama", "mistral") and marked != default:
            raise InputError(f"layer_types is {types!r}; {kind} has the same attention in every layer")
    if any(marked) and not window:
        raise InputError(f"sliding_window is {f.raw.get('sliding_window')!r}, but layers of this {kind} need a window")
    return (window, shortest(marked)) if any(marked) else (None, (True,))


def shortest(pattern: list[bool]) -> tuple[bool, ...]:
    """Returns the shortest pattern that, repeated, gives `pattern`."""
    n = len(pattern)
    return tuple(next(pattern[:p] for p in range(1, n + 1) if all(pattern[i] == pattern[i % p] for i in range(n))))

"""How large an engine is."""

from dataclasses import dataclass
from typing import Literal

from abi_jax.errors import InputError
from abi_jax.serve.engine.lookup import Lookup

SMALLEST_BUCKET = 16
MOST_GUESSED = 32
LONGEST_MATCH = 32


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine, all fixed once it is made.

    slots: answers at a time. chunk: tokens of a prompt that are read at once, and what the prefix cache shares; a
    multiple of `page_size`, the tokens of a page. pages of the key-value cache: None for as many as all slots take at
    full length. max_length: longest prompt and answer together, None for the model's. prefix_cache: prompts that begin
    alike are read once. users: users' own adaptations on the device at a time (see `model/users.py`), 0 for none.
    quantization: int8 keeps the backbone's matrices as codes (see `model/int8.py`), None in the server's `dtype`;
    kv_cache_dtype: the same of keys and values, "auto" for `dtype`.
    lookup: tokens that each step guesses of an answer beside the one it makes, 0 for none: what followed where the
    answer's last tokens, `lookup_max` to `lookup_min` of them, came before (see `engine/lookup.py`).
    """

    slots: int = 8
    page_size: int = 64
    chunk: int = 64
    pages: int | None = None
    max_length: int | None = None
    prefix_cache: bool = True
    users: int = 0
    quantization: Literal["int8"] | None = None
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    lookup: int = 0
    lookup_min: int = 1
    lookup_max: int = 3

    def __post_init__(self) -> None:
        for name in ("slots", "page_size", "pages", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} = {value}; expected at least 1")
        for name, known in (("quantization", (None, "int8")), ("kv_cache_dtype", ("auto", "int8"))):
            if getattr(self, name) not in known:
                expected = " or ".join("null" if value is None else value for value in known)
                raise InputError(f"{name} = {getattr(self, name)!r}; expected {expected}")
        if self.users < 0:
            raise InputError(f"users = {self.users}; expected 0 (no adaptations) or more")
        if not 0 <= self.lookup <= MOST_GUESSED:
            raise InputError(f"lookup = {self.lookup}; expected 0 (no guesses) to {MOST_GUESSED} tokens")
        if not 1 <= self.lookup_min <= self.lookup_max <= LONGEST_MATCH:
            raise InputError(
                f"lookup_min = {self.lookup_min} and lookup_max = {self.lookup_max}; expected "
                f"1 <= lookup_min <= lookup_max <= {LONGEST_MATCH}"
            )
        if self.chunk < SMALLEST_BUCKET or self.chunk % self.page_size:
            raise InputError(
                f"chunk = {self.chunk}; expected a multiple of page_size = {self.page_size}, at least {SMALLEST_BUCKET}"
            )

    @property
    def guesses(self) -> Lookup:
        """How a step guesses."""
        return Lookup(self.lookup, self.lookup_min, self.lookup_max)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes in which the rest of a prompt is read: doubling up to a chunk."""
        sizes = [SMALLEST_BUCKET]
        while sizes[-1] * 2 < self.chunk:
            sizes.append(sizes[-1] * 2)
        return (*(s for s in sizes if s < self.chunk), self.chunk)

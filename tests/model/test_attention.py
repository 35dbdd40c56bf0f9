"""Every attention backend computes what the reference computes, or refuses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model import attention, attention_flash
from abi_jax.model.attention import attend, reference, refusal
from abi_jax.model.attention_flash import cudnn, fold, tpu
from abi_jax.model.attention_terms import Bias, PagedPast, Past, Scoring, Sight
from abi_jax.model.attention_xla import xla
from abi_jax.text.roles import NUM_ROLES, Role

FEATURES = 5
Backend = Callable[..., jax.Array]


@dataclass(frozen=True)
class Case:
    """Operands of one attention call, and where its result is defined."""

    arrays: dict[str, Any]  # q, k, v, and u, f of the persona bias
    sight: Sight
    scoring: Scoring
    real: np.ndarray  # bool [B, T]: queries that see something

    def loss(self, backend: Backend, arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """A fixed random functional of the result at its real rows, and that result."""
        bias = Bias(arrays["u"], arrays["f"]) if "u" in arrays else None
        out = backend(arrays["q"], arrays["k"], arrays["v"], self.sight, self.scoring, bias)
        out = out * self.real[..., None, None]
        return jnp.sum(out * np.random.default_rng(9).normal(size=out.shape).astype(np.float32)), out

    def run(self, *backends: Backend) -> list[dict[str, jax.Array]]:
        """Returns each backend's result, under "out", and its gradient by the name of the operand."""

        @jax.jit
        def everything(arrays: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
            results = [jax.grad(partial(self.loss, backend), has_aux=True)(arrays) for backend in backends]
            return [{"out": out, **gradient} for gradient, out in results]

        return everything(self.arrays)


def make(
    T: int = 32,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    d: int = 8,
    packed: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    bias: bool = False,
    rules: bool = False,
) -> Case:
    """Aligned queries and keys of two rows, `packed` or padded at their end."""
    B, rng = 2, np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"q": (B, T, heads, d), "k": (B, kv_heads, T, d), "v": (B, kv_heads, T, d)}
    shapes |= {"u": (B, T, heads, FEATURES), "f": (B, FEATURES, T)} if bias else {}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["q"] *= 2
    if packed:
        lengths = [[T // 4, T // 2, T // 8], [T // 2 - 1, T // 4]]
        segments = np.stack([np.pad(np.repeat(np.arange(len(n)) + 1, n), (0, T - sum(n))) for n in lengths])
        starts = np.array([[np.argmax(row == s) for s in row] for row in segments])
    else:
        segments, starts = (np.arange(T) < [[T], [T - 5]]).astype(int), np.zeros((B, T), int)
    positions = jnp.asarray(np.arange(T) - starts, jnp.int32)
    readable, roles = None, None
    if rules:
        # half of every eight tokens are history, the rest a response, which anybody may read
        half = np.arange(T) % 8 < 4
        roles = jnp.asarray(np.where(half, Role.HISTORY, Role.RESPONSE) + 0 * segments, jnp.int32)
        table = np.ones((B, T, NUM_ROLES), bool)
        table[0, ~half, Role.HISTORY] = False
        table[1, :, Role.MEMORY] = False
        readable = jnp.asarray(table)
    of = jnp.asarray(segments, jnp.int32)
    sight = Sight(positions, positions, of, of, roles, readable, aligned=True, packed=packed)
    return Case(arrays, sight, Scoring(0.4, softcap, window), segments > 0)


def check(case: Case, *backends: Backend, atol: float = 1e-5) -> None:
    expected, *results = case.run(reference, *backends)
    for result in results:
        assert result.keys() == case.arrays.keys() | {"out"}
        for name, value in result.items():
            assert np.abs(expected[name]).max() > 1e-2, name
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=atol, err_msg=name)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"packed": True},
    "window": {"window": 7},
    "softcap": {"softcap": 1.5},
    "multi-query": {"kv_heads": 1},
    "no groups": {"kv_heads": 4},
    "bias": {"bias": True},
    "rules": {"rules": True},
    "everything": {"packed": True, "window": 9, "softcap": 2.0, "bias": True, "rules": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

# --- xla -----------------------------------------------------------------------------------------


@each_option
def test_xla_is_the_reference_whole_and_in_blocks(options: dict[str, Any]) -> None:
    check(make(**options), xla, partial(xla, smallest_block=8))


def test_xla_in_its_own_blocks_is_the_reference() -> None:
    check(make(512, heads=2, kv_heads=1, d=4, packed=True, window=200, bias=True, rules=True), xla)


@pytest.mark.parametrize("T", [1, 3])
@each_option
def test_xla_against_a_cache_is_the_reference(options: dict[str, Any], T: int) -> None:
    """Row 0 goes on from slot 20, row 1 from slot 9: both are the reference over all tokens, without a cache."""
    whole = make(**options | {"packed": False})
    starts = np.array([20, 9])
    bias = Bias(whole.arrays["u"], whole.arrays["f"]) if "u" in whole.arrays else None
    q, k, v = (jnp.asarray(whole.arrays[n]) for n in "qkv")
    expected = reference(q, k, v, whole.sight, whole.scoring, bias)

    def new(x: Any, axis: int) -> jax.Array:
        rows = [jnp.moveaxis(jnp.asarray(x[b]), axis - 1, 0)[s : s + T] for b, s in enumerate(starts)]
        return jnp.moveaxis(jnp.stack(rows), 1, axis)

    sight = whole.sight
    rules = None if sight.readable is None else new(sight.readable, 1)
    roles = sight.k_roles
    positions, ones = new(sight.q_positions, 1), jnp.ones((2, T), jnp.int32)
    filled = jnp.asarray(np.arange(32) < starts[:, None], jnp.int32)
    old = Sight(positions, sight.k_positions, ones, filled, roles, rules)
    own = Sight(positions, positions, ones, ones, None if roles is None else new(roles, 1), rules, True, False)
    past = Past(k, v, old, None if bias is None else jnp.asarray(bias.v))
    bias = None if bias is None else Bias(new(bias.u, 1), new(bias.v, 2))
    backend: Backend
    for backend in (reference, xla):
        out = backend(new(q, 1), new(k, 2), new(v, 2), own, whole.scoring, bias, past)
        np.testing.assert_allclose(out, new(expected, 1), rtol=1e-5, atol=1e-5)
    out = attend(new(q, 1), new(k, 2), new(v, 2), own, whole.scoring, bias, in_pages(past, starts))
    np.testing.assert_allclose(out, new(expected, 1), rtol=1e-5, atol=1e-5)


def in_pages(past: Past, lengths: np.ndarray, size: int = 8) -> PagedPast:
    """The same past in pages of `size` tokens, which lie anywhere; what is beyond a row's length is noise."""
    batch, total = past.k.shape[0], past.k.shape[2]
    table = 1 + np.random.default_rng(0).permutation(batch * total // size).reshape(batch, -1)

    def pool(x: jax.Array | None, axis: int) -> Any:
        if x is None:
            return None
        rows = np.moveaxis(np.array(x), axis, 1)
        rows[np.arange(total) >= lengths[:, None]] = 9
        pages = np.full((table.size + 1, size, *rows.shape[2:]), 9, rows.dtype)
        pages[table] = rows.reshape(batch, -1, size, *rows.shape[2:])
        return jnp.asarray(np.moveaxis(pages, 1, axis))

    roles = None if past.sight.k_roles is None else jnp.clip(pool(past.sight.k_roles, 1), 0, 5)
    sight = past.sight
    return PagedPast(
        pool(past.k, 2),
        pool(past.v, 2),
        jnp.asarray(table, jnp.int32),
        jnp.asarray(lengths, jnp.int32),
        sight.q_positions,
        sight.q_segments,
        roles,
        sight.readable,
        pool(past.features, 2),
    )


def test_bfloat16_stays_near_the_reference() -> None:
    case = make(bias=True, window=20)
    half = replace(case, arrays={n: x if n in "uf" else x.astype(jnp.bfloat16) for n, x in case.arrays.items()})
    exact = case.run(reference)[0]["out"]
    for result in half.run(reference, xla):
        np.testing.assert_allclose(result["out"], exact, rtol=0, atol=0.05)


# --- who sees whom -------------------------------------------------------------------------------


def test_the_mask_of_the_drawing() -> None:
    """Two packed segments of three tokens, a window of 2: the drawing at the top of the module."""
    positions, segments = jnp.array([[0, 1, 2, 0, 1, 2]]), jnp.array([[1, 1, 1, 2, 2, 2]])
    sight = Sight(positions, positions, segments, segments, aligned=True)
    expected = ["x.....", "xx....", ".xx...", "...x..", "...xx.", "....xx"]
    assert ["".join(".x"[int(seen)] for seen in row) for row in sight.mask(2)[0]] == expected


def test_rules_are_anded_with_the_rest() -> None:
    case = make(packed=True, window=9, rules=True)
    readable, roles = np.asarray(case.sight.readable), np.asarray(case.sight.k_roles)
    allowed = np.stack([readable[b][:, roles[b]] for b in range(2)])
    without = np.asarray(replace(case.sight, readable=None).mask(9))
    assert np.array_equal(case.sight.mask(9), without & allowed)
    assert (without & ~allowed).any()


def test_no_gradient_crosses_an_example_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every backend, to the last bit; only what stands in for cuDNN's kernel here is JAX's own attention."""
    solved_by_jax(monkeypatch)
    case = make(128, heads=2, kv_heads=1, packed=True, bias=True)
    first = np.asarray(case.sight.q_segments) == 1
    backends = (reference, xla, partial(xla, smallest_block=8), cudnn, partial(tpu, interpret=True))
    assert len(backends) > len(attention.BACKENDS)
    for result in replace(case, real=first).run(*backends):
        for name, g in result.items():
            tokens = np.moveaxis(np.asarray(g), 2, 1) if name in ("k", "v", "f") else np.asarray(g)
            assert (tokens[~first] == 0).all(), name
            assert (tokens[first] != 0).any(), name


def test_a_query_that_sees_nothing_is_finite() -> None:
    case = make(packed=True, bias=True, rules=True)
    assert case.sight.readable is not None
    blind = replace(case, sight=replace(case.sight, readable=jnp.zeros_like(case.sight.readable)))
    assert all(np.isfinite(x).all() for result in blind.run(reference, xla) for x in result.values())


# --- folding the mask into q and k, for flash kernels ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "multiple"),
    [({}, 16), ({"bias": True}, 16), ({"rules": True}, 128), ({"bias": True, "rules": True, "packed": True}, 128)],
)
def test_folding_leaves_plain_attention_of_scale_one(options: dict[str, Any], multiple: int) -> None:
    def folded(
        q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scoring: Scoring, bias: Bias | None
    ) -> jax.Array:
        q, k = fold(q, k, sight, scoring.scale, bias, multiple=multiple)
        assert q.shape[-1] == k.shape[-1] and q.shape[-1] % multiple == 0
        return reference(q, k, v, replace(sight, readable=None), replace(scoring, scale=1.0))

    check(make(window=11, **options), folded)


def solved_by_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets JAX's own attention stand in for cuDNN's, which takes the same arguments."""
    original = jax.nn.dot_product_attention

    def stand_in(*args: Any, implementation: str, **options: Any) -> jax.Array:
        assert implementation == "cudnn"
        return original(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 7},
        {"bias": True},
        {"packed": True},
        {"rules": True, "bias": True, "window": 9},
        {"rules": True, "bias": True, "window": 9, "packed": True},
    ],
)
def test_cudnn_is_asked_for_what_the_reference_computes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved_by_jax(monkeypatch)
    # scores that are folded with segments are sums of up to 6,000, rounded as such in f32
    check(make(**options), cudnn, atol=2e-3 if "packed" in options else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 1.5, "packed": True, "window": 40},
        {"bias": True, "rules": True, "packed": True, "window": 40},
    ],
    ids=["softcap", "folded"],
)
def test_the_tpu_kernel_is_the_reference(options: dict[str, Any]) -> None:
    check(make(128, heads=2, kv_heads=1, **options), partial(tpu, interpret=True), atol=2e-5)


def test_the_tpu_program_lowers() -> None:
    case = make(128, d=64, bias=True, rules=True, packed=True, window=40)

    def run(arrays: dict[str, jax.Array]) -> jax.Array:
        bias = Bias(arrays["u"], arrays["f"])
        return jnp.sum(tpu(arrays["q"], arrays["k"], arrays["v"], case.sight, case.scoring, bias))

    text = jax.jit(jax.grad(run)).trace(case.arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2


# --- choosing --------------------------------------------------------------------------------------


def called(case: Case, backend: str, dtype: Any = jnp.float32, **changes: Any) -> jax.Array:
    q, k, v = (jnp.asarray(case.arrays[name], dtype) for name in "qkv")
    bias = Bias(case.arrays["u"], case.arrays["f"]) if "u" in case.arrays else None
    sight = replace(case.sight, **changes)
    return attend(q, k, v, sight, case.scoring, bias, backend=backend)


@pytest.mark.parametrize(
    ("backend", "options", "dtype", "changes", "reason"),
    [
        ("cudnn", {"softcap": 2.0}, jnp.bfloat16, {}, "cuDNN has no soft-capping"),
        ("cudnn", {}, jnp.float32, {}, "dtype float32 is neither bfloat16 nor float16"),
        ("cudnn", {}, jnp.bfloat16, {"aligned": False}, "a cache is in use"),
        ("cudnn", {"softcap": 2.0, "bias": True}, jnp.bfloat16, {}, "would also cap the persona mask"),
        (
            "cudnn",
            {"d": 256, "bias": True},
            jnp.bfloat16,
            {},
            "head dimension 272, persona mask included, must be at most 256",
        ),
        ("tpu", {}, jnp.bfloat16, {}, "sequence length 32 must be a multiple of 128"),
        ("tpu", {"T": 128}, jnp.float32, {"aligned": False}, "a cache is in use"),
        ("tpu", {"T": 128, "softcap": 2.0, "rules": True}, jnp.float32, {}, "would also cap the persona mask"),
    ],
)
def test_refusals_name_backend_and_reason(
    backend: str,
    options: dict[str, Any],
    dtype: Any,
    changes: dict[str, Any],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_flash, "_has_cudnn", lambda: True)
    with pytest.raises(InputError, match=f"attention='{backend}' cannot compute this: .*{reason}.*use 'xla'"):
        called(make(**options), backend, dtype, **changes)


def test_cudnn_is_refused_where_there_is_no_gpu_to_ask() -> None:
    with pytest.raises(InputError, match="attention='cudnn' cannot compute this: there is no NVIDIA GPU here"):
        called(make(), "cudnn", jnp.bfloat16)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(InputError, match="attention='flash' is unknown; choose from auto, reference, xla, cudnn, tpu"):
        called(make(), "flash")


@pytest.mark.parametrize(
    ("platform", "T", "dtype", "options", "chosen"),
    [
        ("cpu", 128, jnp.bfloat16, {}, "xla"),
        ("gpu", 64, jnp.bfloat16, {}, "cudnn"),
        ("gpu", 64, jnp.bfloat16, {"bias": True, "rules": True, "window": 9}, "cudnn"),
        ("gpu", 64, jnp.float32, {}, "xla"),
        ("gpu", 64, jnp.bfloat16, {"packed": True}, "cudnn"),
        ("gpu", 64, jnp.bfloat16, {"d": 256, "bias": True}, "xla"),
        ("tpu", 128, jnp.bfloat16, {"packed": True, "bias": True}, "tpu"),
        ("tpu", 128, jnp.bfloat16, {"softcap": 2.0}, "tpu"),
        ("tpu", 64, jnp.bfloat16, {}, "xla"),
        ("tpu", 128, jnp.bfloat16, {"softcap": 2.0, "bias": True}, "xla"),
    ],
)
def test_auto_takes_the_best_that_does_not_refuse(
    platform: str, T: int, dtype: Any, options: dict[str, Any], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(name: str) -> Backend:
        return lambda *_, **__: jnp.asarray(list(attention.BACKENDS).index(name))

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    for name in attention.BACKENDS:
        monkeypatch.setitem(attention.BACKENDS, name, named(name))
    assert list(attention.BACKENDS)[int(called(make(T, **options), "auto", dtype))] == chosen


def test_the_general_backends_refuse_nothing() -> None:
    case = make(**OPTIONS["everything"])
    for name in ("reference", "xla"):
        assert refusal(name, case.arrays["q"], case.sight, case.scoring) is None

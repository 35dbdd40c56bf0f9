"""What a device says of a row is off by no more than its margin, whatever the numbers and the type."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.wdbx.search.exact import exact_scores
from abi_jax.wdbx.search.mesh_pages import COMPUTE, empty_pages, encode_queries, fill, margin, page_shape
from abi_jax.wdbx.search.mesh_select import Rows, score


@settings(max_examples=60, deadline=None)
@given(
    metric=st.sampled_from(["cosine", "l2", "ip"]),
    compute=st.sampled_from(COMPUTE),
    scales=st.tuples(st.integers(-30, 14), st.integers(-30, 14)),
    spread=st.sampled_from([0.0, 0.01, 1.0, 4.0]),
    whole=st.booleans(),
    batch=st.sampled_from([4, 64]),
    seed=st.integers(0, 2**32 - 1),
)
@example(metric="cosine", compute="bfloat16", scales=(-30, 14), spread=4.0, whole=False, batch=4, seed=0)
def test_margin(
    metric: str, compute: str, scales: tuple[int, int], spread: float, whole: bool, batch: int, seed: int
) -> None:
    """Numbers of any size, near each other or of sizes far apart in a row, as stored in float32 or int8."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(32, 16)) * np.exp(spread * rng.normal(size=(32, 16)))
    queries = vectors[:batch] + 0.01 * rng.normal(size=(min(batch, 32), 16))
    if whole:
        vectors = np.clip(np.rint(vectors * 40), -128, 127).astype(np.int8)
        vectors[:, 0] = np.bitwise_or(vectors[:, 0], 1)  # none is zero
    else:
        vectors = np.clip(vectors * 10.0 ** scales[0], -1e15, 1e15).astype(np.float32)
    queries = np.clip(queries * 10.0 ** scales[1], -1e15, 1e15).astype(np.float32)
    shape = page_shape(metric, 16, compute, 32)
    pages = empty_pages(shape, 1)
    fill(shape, pages, 0, vectors)
    encoded = encode_queries(shape, queries, batch)
    numbers, scale, offset = (jnp.asarray(each[0]) for each in pages.arrays[:3])
    rows = Rows(numbers, scale, offset, jnp.ones(32, bool))
    told = np.asarray(score(rows, jnp.asarray(encoded.parts), jnp.asarray(encoded.scales)), np.float64)
    allowed = margin(shape, encoded, float(pages.reach[0, 0]), float(pages.reach[0, 1]))
    for q, query in enumerate(queries):
        exact = exact_scores(metric, query, vectors).astype(np.float64)
        wide = query.astype(np.float64)
        if metric == "l2":
            exact = np.square(wide).sum() - exact
        off = np.abs(told[:, q] - exact)
        assert (off <= allowed[q]).all(), (off.max(), allowed[q])


def test_a_page_is_about_a_megabyte() -> None:
    assert page_shape("l2", 768, "float32").rows == 256
    assert page_shape("l2", 768, "bfloat16").rows == 512
    assert page_shape("l2", 2, "float32").rows == 4096
    assert page_shape("l2", 65_536, "float32").rows == 128
    with pytest.raises(InputError, match="rows_per_page 48: expected a power of two"):
        page_shape("l2", 2, "float32", 48)

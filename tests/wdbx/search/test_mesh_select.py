"""The forms of a scan agree: XLA, the kernels (interpreted), approximate maxima. All lower for GPUs and TPUs."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.search import mesh_programs
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from abi_jax.wdbx.search.mesh_gather import gather
from abi_jax.wdbx.search.mesh_kernel import block_maxima, fits, select_fused
from abi_jax.wdbx.search.mesh_pages import page_shape
from abi_jax.wdbx.search.mesh_probe import WIDTH, probe
from abi_jax.wdbx.search.mesh_programs import Programs, scan_structs
from abi_jax.wdbx.search.mesh_select import BLOCK, Rows, products, score, select
from tests.wdbx.search.test_mesh import check, mesh_of


def some_rows(kind: str, count: int, dim: int, batch: int) -> tuple[Rows, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(count, dim)) * 30, rng.normal(size=(1, batch, dim)) * 30
    numbers = [jnp.asarray(np.rint(each).astype(np.float32)).astype(kind) for each in (rows, queries)]
    scale, offset = rng.uniform(0.5, 2, count), rng.normal(size=count)
    given = Rows(numbers[0], jnp.float32(scale), jnp.float32(offset), jnp.asarray(rng.random(count) < 0.7))
    return given, numbers[1], jnp.full((1, batch), 0.5, jnp.float32)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_kernels_as_xla(kind: str) -> None:
    """Whole numbers, so that no order of a sum rounds: block maxima and the best rows are the same."""
    rows, parts, scales = some_rows(kind, 2048, 128, 16)
    scores = score(rows, parts, scales)
    expected = scores.reshape(-1, BLOCK, 16).max(axis=1)
    best = select(scores, 20, approximate=False)
    order = np.argsort(-np.asarray(scores), axis=0, kind="stable")[:20].T
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(scores).T, order, 1), best.scores)
    for platform in ("gpu", "tpu"):
        found = block_maxima(rows, parts[0], scales[0], platform, interpret=True)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    fused = select_fused(rows, parts, scales, 20, "cpu")
    assert fits(rows.rows.shape, parts.shape, "cpu")
    np.testing.assert_allclose(fused.scores, best.scores, rtol=1e-6)
    np.testing.assert_array_equal(fused.at, best.at)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("platform", "name"), [("cuda", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize("kernel", ["xla", "pallas"])
def test_lowers_for_accelerators(kind: str, platform: str, name: str, kernel: str) -> None:
    shape = page_shape("l2", 256, kind, 512)
    form = partial(mesh_programs._scan, tiles=2, kernel=kernel, platform=name)
    lowered = jax.jit(form).trace(*scan_structs(shape, 64, 128, 32)).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert ("wdbx_block_maxima" in text) == (kernel == "pallas")


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("platform", "name"), [("cuda", "gpu"), ("tpu", "tpu")])
def test_parts_of_slabs_lower_for_accelerators(kind: str, platform: str, name: str) -> None:
    given = scan_structs(page_shape("l2", 256, kind, 512), 64, 128, 32)
    blocks, rows = jax.ShapeDtypeStruct((1, 128, WIDTH), np.int32), jax.ShapeDtypeStruct((1, 4096), np.int32)
    by_lists, one_by_one = partial(probe, platform=name), partial(gather, platform=name)
    jax.jit(by_lists).trace(*given[:5], blocks, *given[5:]).lower(lowering_platforms=(platform,))
    jax.jit(one_by_one).trace(*given[:4], rows, *given[5:]).lower(lowering_platforms=(platform,))


def test_products_of_queries_in_parts() -> None:
    rows, parts, _ = some_rows("int8", 64, 16, 4)
    two = jnp.concatenate([parts, parts])
    made = products(rows.rows, two, jnp.stack([jnp.full(4, 2.0), jnp.full(4, 0.5)]))
    expected = 2.5 * (np.asarray(rows.rows, np.float64) @ np.asarray(parts[0], np.float64).T)
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_what_approximate_maxima_miss_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a TPU, with a selection that misses the best block of every query: the answer stays exact."""
    missed = []

    def lossy(maxima: jax.Array, keep: int, recall_target: float, **_: Any) -> tuple[jax.Array, jax.Array]:
        missed.append(recall_target)
        scores, at = jax.lax.top_k(maxima, keep + 1)
        return scores[:, 1:], at[:, 1:]

    rng = np.random.default_rng(5)
    vectors, queries = rng.normal(size=(6000, 24)), rng.normal(size=(3, 24)).astype(np.float32)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig("float32", rows_per_page=128))
    mesh.programs = Programs(list(mesh_of(2).devices.flat))
    mesh.programs.platform = "tpu"
    with wdbx.open(tmp_path / "store", mesh=mesh) as db:
        c = db.create_collection("c", 24, "ip", ids="int")
        c.upsert(np.arange(6000), vectors)
        for change in (False, True):
            if change:
                monkeypatch.setattr(jax.lax, "approx_max_k", lossy)
                mesh.programs._made.clear()
            found = c.view().search(queries, 7)
            check(found, "ip", queries, vectors.astype(np.float32), np.ones(6000, bool))
    assert missed

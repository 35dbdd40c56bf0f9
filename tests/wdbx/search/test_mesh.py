"""Search on a mesh is exact: ids and scores of NumPy, on any number of devices, whatever they compute in."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.sharding import MeshConfig as Devices
from abi_jax.sharding import make_mesh, use
from abi_jax.wdbx.search import mesh_gather
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_pool import KEPT
from abi_jax.wdbx.search.mesh_programs import Programs
from abi_jax.wdbx.search.told import Told

ROWS, DIM, TOP_K, PAGE = 2400, 24, 7, 128
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
METRICS = ["cosine", "l2", "ip"]


def mesh_of(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])


def naive(metric: str, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    q, x = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return ((q - x) ** 2).sum(1)
    scores = (q * x).sum(1)
    return scores / np.linalg.norm(x, axis=1) / np.linalg.norm(q) if metric == "cosine" else scores


def check(found: list[list[wdbx.Hit]], metric: str, queries: np.ndarray, vectors: np.ndarray, kept: np.ndarray) -> None:
    for query, hits in zip(queries, found, strict=True):
        scores = naive(metric, query, vectors)
        keys = np.where(kept, (scores if metric == "l2" else -scores).astype(np.float32), np.inf)
        best = np.lexsort((np.arange(len(keys)), keys))[: min(TOP_K, int(kept.sum()))]
        assert [hit.id for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], rtol=1e-6)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Clusters, with many rows that are there more than once."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, DIM))
    vectors = centers[rng.integers(0, 20, ROWS)] + 0.3 * rng.normal(size=(ROWS, DIM))
    vectors[rng.integers(0, ROWS, 400)] = vectors[:400]
    return vectors, centers[:9] + 0.2 * rng.normal(size=(9, DIM))


Case = tuple[wdbx.Collection, list[tuple[int, np.ndarray, np.ndarray]], np.ndarray]


@pytest.fixture(scope="module")
def cases(data: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, Case]]:
    """Collections by metric and dtype: two segments and a tail, with versions: number, vectors, which are there."""
    with wdbx.open(tmp_path_factory.mktemp("mesh") / "store") as db:
        made: dict[Any, Case] = {}
        for metric in METRICS:
            for dtype, kind in DTYPES.items():
                vectors, queries = (30 * each if dtype == "int8" else each for each in data)
                vectors = (np.clip(np.rint(vectors), -128, 127) if dtype == "int8" else vectors).astype(kind)
                c = db.create_collection(f"{metric}-{dtype}", DIM, metric, dtype, {"even": bool}, ids="int")
                made[metric, dtype] = c, [], queries.astype(np.float32)
                third = ROWS // 3
                alive = np.zeros(ROWS, bool)
                for start in range(0, ROWS, third):
                    ids = np.arange(start, start + third)
                    version = c.upsert(ids, vectors[ids], {"even": (ids % 2 == 0).tolist()})
                    alive[ids] = True
                    made[metric, dtype][1].append((version, vectors.copy(), alive.copy()))
                    if start < 2 * third:
                        db.seal()
                gone, new = np.arange(0, ROWS, 5), np.arange(1, ROWS, 40)
                c.delete(gone)
                alive[gone] = False
                vectors[new] = vectors[new + 1]
                c.upsert(new, vectors[new], {"even": (new % 2 == 0).tolist()})
                made[metric, dtype][1].append((db.version, vectors.copy(), alive.copy()))
        yield made


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_as_numpy(devices: int, cases: dict[Any, Case]) -> None:
    """All metrics and dtypes, with deletes, updates, a filter and older versions."""
    mesh = mesh_of(devices)
    for (metric, _), (collection, versions, queries) in cases.items():
        c = collection.on(mesh, MeshSearchConfig(rows_per_page=PAGE))
        for version, vectors, alive in versions:
            check(c.view(version).search(queries, TOP_K), metric, queries, vectors, alive)
        even = alive & (np.arange(ROWS) % 2 == 0)
        check(c.view().search(queries, TOP_K, {"even": True}), metric, queries, vectors, even)
        hit = c.query(queries[0], top_k=1)[0]
        assert hit == collection.query(queries[0], top_k=1)[0]


@pytest.mark.parametrize("compute", ["bfloat16", "int8"])
def test_in_a_shorter_type(compute: str, cases: dict[Any, Case]) -> None:
    """What devices compute in does not change the answer; queries of one part and of two."""
    for (metric, _), (collection, versions, queries) in cases.items():
        c = collection.on(mesh_of(4), MeshSearchConfig(compute, rows_per_page=PAGE))
        _, vectors, alive = versions[-1]
        many = np.tile(queries, (2, 1))
        check(c.view().search(queries[:3], TOP_K), metric, queries[:3], vectors, alive)
        check(c.view().search(many, TOP_K), metric, many, vectors, alive)


def test_through_little_memory(cases: dict[Any, Case]) -> None:
    """Collections larger than the budget, and the same budget for all of them."""
    page = PAGE * (DIM * 4 + 9)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, bytes_per_device=4 * page))
    for (metric, dtype), (collection, versions, queries) in cases.items():
        if dtype in ("float32", "int8"):
            c = collection.on(mesh)
            for version, vectors, alive in versions[-2:]:
                check(c.view(version).search(queries[:4], TOP_K), metric, queries[:4], vectors, alive)
                assert 0 < mesh.nbytes <= 4 * page
    with pytest.raises(InputError, match="bytes_per_device 20000: expected at least"):
        collection.on(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, bytes_per_device=20000)).query(queries[0])


def test_more_ties_than_devices_return(tmp_path: Path) -> None:
    """Where hundreds of rows tie, all of them are asked for, and the lowest ids win."""
    rng = np.random.default_rng(1)
    with wdbx.open(tmp_path / "store", mesh=MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))) as db:
        for metric in METRICS:
            c = db.create_collection(metric, DIM, metric, ids="int")
            vectors = rng.normal(size=(1000, DIM)).astype(np.float32)
            vectors[rng.permutation(1000)[:400]] = 2 * vectors[0]
            c.upsert(np.arange(1000), vectors)
            queries = np.stack([3 * vectors[0], vectors[5]])
            found, how = c.query(queries, TOP_K, explain=True)
            check(found, metric, queries, vectors, np.ones(1000, bool))
            assert {(each["part"], each["way"], each["of"]) for each in how} == {("tail", "mesh", 1000)}
            assert sum(each["queries"] for each in how) == 2
            assert {each["why"] for each in how} >= {
                "2 devices of type cpu, float32 by xla; twice, since rows tie or are nearly as good"
            }


def test_more_asked_for_than_there_are(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store", mesh=mesh_of(4)) as db:
        c = db.create_collection("c", 2, "ip")
        assert c.query([1, 0]) == []
        c.upsert(["b", "a", "c"], [[1, 0], [1, 0], [0, 1]])
        assert [(hit.id, hit.score) for hit in c.view().search([[1, 0]], 10_000)[0]] == [("a", 1), ("b", 1), ("c", 0)]
        c.delete(["a", "b", "c"])
        assert c.query([1, 0]) == []


def mixed(db: wdbx.Database, c: wdbx.Collection, rng: np.random.Generator, count: int) -> None:
    """Writes, deletes, seals and searches of all kinds."""
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2:
            some = rng.integers(0, 3000, rng.integers(1, 40))
            c.upsert(np.unique(some), rng.normal(size=(len(np.unique(some)), 8)), {"n": (np.unique(some) % 7).tolist()})
        elif kind < 0.3:
            c.delete(rng.integers(0, 3000, 5))
        elif kind < 0.31:
            db.seal()
        else:
            where = {"n": {"$gte": int(rng.integers(0, 7))}} if kind < 0.5 else None
            at = max(db.version - int(rng.integers(0, 50)), 2) if kind < 0.6 else None
            c.query(rng.normal(size=(rng.integers(1, 12), 8)), int(rng.integers(1, 12)), where, at)


@pytest.mark.slow
def test_no_recompilation(tmp_path: Path, compilations: Callable[[], int]) -> None:
    """Mixed operations, in whatever context a caller is, compile nothing once each shape was seen."""
    rng = np.random.default_rng(2)
    with wdbx.open(tmp_path / "store", mesh=MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=128))) as db:
        c = db.create_collection("c", 8, "l2", schema={"n": int}, ids="int")
        for start in range(0, 9000, 3000):  # the last ones replace the first, which versions before still have
            c.upsert(np.arange(start, start + 3000) % 3000, rng.normal(size=(3000, 8)), {"n": [0] * 3000})
        mixed(db, c, rng, 150)
        before = compilations()
        assert before > 0
        mixed(db, c, rng, 350)
        with use(make_mesh(Devices(data=4, tensor=2))):
            mixed(db, c, rng, 100)
        assert compilations() == before


def test_pages_come_and_go(tmp_path: Path) -> None:
    """New rows take new pages only; pages of a segment that is gone are free."""
    rng = np.random.default_rng(3)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=mesh) as db:
        c = db.create_collection("c", DIM, ids="int")
        c.upsert(np.arange(2000), rng.normal(size=(2000, DIM)))
        db.seal()
        query = rng.normal(size=DIM)
        c.query(query)
        pool = next(iter(mesh._pools.values()))
        slabs = list(pool.slabs)
        arrays = [slab.arrays[0] for slab in slabs]
        assert sum(slab.used for slab in slabs) == 16
        c.delete([3])
        c.query(query)
        assert [slab.arrays[0] is array for slab, array in zip(slabs, arrays, strict=True)] == [True] * len(slabs)
        c.upsert([5000], rng.normal(size=(1, DIM)))
        c.query(query)
        assert sum(slab.used for slab in pool.slabs) == 17
        assert [slab.arrays[0] is array for slab, array in zip(slabs, arrays, strict=True)] == [True] * len(slabs)
        c.upsert([5001], rng.normal(size=(1, DIM)))
        c.query(query)
        assert sum(slab.used for slab in pool.slabs) == 17
        c.delete(range(1, 1500))
        db.compact()
        gc.collect()
        c.query(query)
        held = c.view().segments
        assert sum(slab.used for slab in pool.slabs) == sum(-(-len(segment) // PAGE) for segment in held)


def test_readers_beside_a_writer(tmp_path: Path) -> None:
    """Threads search views while pages are written and given up: each finds what the host finds in its view."""
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(3, DIM)).astype(np.float32)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=mesh) as db, ThreadPoolExecutor(3) as threads:
        c = db.create_collection("c", DIM, "l2", ids="int")

        def compare() -> bool:
            view = c.view()
            return view.search(queries, TOP_K) == replace(view, mesh=None).search(queries, TOP_K)

        running = []
        for i in range(24):
            ids = np.unique(rng.integers(0, 2000, 150))
            c.upsert(ids, rng.normal(size=(len(ids), DIM)))
            if i % 6 == 5:
                db.seal()
            running.append(threads.submit(compare))
        assert all(each.result() for each in running)


def test_pages_go_by_age_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process may still hold rows, or not, only searches decide what stays."""
    monkeypatch.setattr(Programs, "alone", property(lambda self: False))
    rng = np.random.default_rng(7)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=mesh) as db:
        c = db.create_collection("c", DIM, "ip", ids="int")
        vectors, queries = rng.normal(size=(1000, DIM)).astype(np.float32), rng.normal(size=(3, DIM)).astype(np.float32)
        c.upsert(np.arange(1000), vectors)
        c.query(queries[0])
        pool = next(iter(mesh._pools.values()))
        db.seal()
        gc.collect()
        check(c.view().search(queries, TOP_K), "ip", queries, vectors, np.ones(1000, bool))
        assert sum(slab.used for slab in pool.slabs) == 16
        for _ in range(KEPT):
            c.query(queries[0])
        assert sum(slab.used for slab in pool.slabs) == 8


def test_fused_as_numpy(tmp_path: Path) -> None:
    """With the kernel of products and maxima, interpreted."""
    rng = np.random.default_rng(6)
    vectors, queries = rng.normal(size=(5000, 64)).astype(np.float32), rng.normal(size=(16, 64)).astype(np.float32)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig("float32", kernel="pallas", rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=mesh) as db:
        c = db.create_collection("c", 64, "l2", ids="int")
        c.upsert(np.arange(5000), vectors)
        check(c.view().search(queries, TOP_K), "l2", queries, vectors, np.ones(5000, bool))


def test_what_is_wrong_is_named() -> None:
    for wrong, message in [
        ({"compute": "float64"}, "compute 'float64': expected one of float32, bfloat16, int8"),
        ({"rows_per_page": 100}, "rows_per_page 100: expected a power of two from 32"),
        ({"kernel": "cuda"}, "kernel 'cuda': expected one of xla, pallas"),
        ({"lists": "device"}, "lists 'device': expected one of auto, mesh, host"),
        ({"bytes_per_device": 0}, "bytes_per_device 0: expected a positive number"),
    ]:
        with pytest.raises(InputError, match=message):
            MeshSearchConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("devices", "compute", "metric"),
    [(1, "float32", "cosine"), (2, "bfloat16", "l2"), (4, "int8", "ip"), (8, "float32", "l2")],
)
def test_few_rows_of_many(devices: int, compute: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a filter leaves is looked at alone where it is little, and exactly, in whatever type devices compute."""
    monkeypatch.setattr(mesh_gather, "FEWEST", 32)
    rng = np.random.default_rng(8)
    vectors, queries = rng.normal(size=(4096, DIM)).astype(np.float32), rng.normal(size=(5, DIM)).astype(np.float32)
    vectors[::9] = vectors[0]  # some tie
    mesh = MeshSearch(mesh_of(devices), MeshSearchConfig(compute, rows_per_page=PAGE))
    for share, way in [(0.02, "gather"), (0.0, "mesh"), (0.6, "mesh"), (0.05, "gather")]:
        allowed, told = rng.random(4096) < share, Told()
        found = mesh("c", [MeshPart(mesh, vectors, allowed)], metric, queries, TOP_K, told).each()
        for query, best in zip(queries, found, strict=True):
            scores = naive(metric, query, vectors)
            keys = np.where(allowed, (scores if metric == "l2" else -scores).astype(np.float32), np.inf)
            expected = np.lexsort((np.arange(4096), keys))[: min(TOP_K, int(allowed.sum()))]
            order = np.lexsort((best.rows, keys[best.rows]))[:TOP_K]
            assert best.rows[order].tolist() == expected.tolist()
        assert {each["way"] for each in told.entries(["it"])} == {way}
        assert way == "mesh" or told.entries(["it"])[0]["rows"] == allowed.sum()

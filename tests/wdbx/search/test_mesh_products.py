"""Product codes on a mesh: the candidates that a host finds by them, on any number of devices, in little memory."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.search import host, mesh_codes
from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import CodesMaker
from abi_jax.wdbx.search.found import Best
from abi_jax.wdbx.search.index import make_product_index
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from abi_jax.wdbx.search.mesh_pages import page_shape
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_products import code_shape
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.products import SHARES, ProductIndex, make_products
from abi_jax.wdbx.search.steps import AnyPart
from abi_jax.wdbx.search.told import Told
from tests.wdbx.search.test_mesh import METRICS, mesh_of
from tests.wdbx.search.traffic import mixed_traffic

ROWS, DIM, TOP_K, PAGE, CLUSTERS = 9000, 40, 7, 64, 80
SPACES = 12  # of four dimensions, with two that are added so that four are looked up together


def clustered(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(CLUSTERS, DIM))
    return (centers[rng.integers(0, CLUSTERS, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


Coded = dict[str, tuple[np.ndarray, ProductIndex]]


@pytest.fixture(scope="module")
def coded() -> Coded:
    """Vectors, of which many are there more than once, and their product codes by metric."""
    made = {}
    for metric in METRICS:
        vectors = clustered(len(metric), ROWS)
        vectors[::9] = vectors[1::9]
        codes = CodesMaker(metric, DIM, vectors.dtype).of(vectors)
        made[metric] = vectors, make_product_index(metric, vectors, codes, None)
    return made


class Owner:
    """What pages belong to."""


def of_mesh(owner: object, vectors: np.ndarray, allowed: np.ndarray, index: ProductIndex) -> MeshPart:
    return MeshPart(owner, vectors, allowed, products=lambda: index)


def of_host(vectors: np.ndarray, allowed: np.ndarray, index: ProductIndex) -> ProductPart:
    """The same rows as a host searches them, none left out by lists."""
    return ProductPart(vectors, index, None if allowed.all() else allowed, lambda: pytest.fail("int8"), by_lists=False)


def same(found: list[Best], expected: list[Best]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.scores.tolist() == b.scores.tolist()
        names = [
            list(zip(each.scores.tolist(), each.parts.tolist(), each.rows.tolist(), strict=True)) for each in (a, b)
        ]
        assert sorted(names[0]) == sorted(names[1])  # rows that score the same come in any order


MASKS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "all": lambda rng: np.ones(ROWS, bool),
    "a tenth deleted": lambda rng: rng.random(ROWS) > 0.1,
    "a filter": lambda rng: rng.random(ROWS) < 0.6,
    "few": lambda rng: rng.random(ROWS) < 0.1,
}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_what_a_host_finds(devices: int, coded: Coded) -> None:
    mesh = MeshSearch(mesh_of(devices), MeshSearchConfig(rows_per_page=PAGE))
    for metric, (vectors, index) in coded.items():
        owner, queries = Owner(), clustered(1, 5)
        for name, make in MASKS.items():
            allowed, told = make(np.random.default_rng(2)), Told()
            part, alone = of_mesh(owner, vectors, allowed, index), of_host(vectors, allowed, index)
            found = mesh(metric, [part], metric, queries, TOP_K, told, 0.9).each()
            same(found, host.search([alone], metric, queries, TOP_K, 0.9).each())
            assert all(allowed[each.rows].all() for each in found)
            (entry,) = told.entries(["it"])
            assert (entry["way"], entry["queries"]) == ("gather" if name == "few" else "pq", 5)
            assert entry["why"].startswith(f"{devices} devices of type cpu, product codes; ")
            assert entry["candidates"] == alone.plan(0.9, TOP_K).candidates
    assert {pool.shape.compute for pool in mesh._pools.values() if pool.slabs} == {"pq"}  # no vectors are there


def test_memory(coded: Coded) -> None:
    """An eighth of int8's, which has scales and offsets, too; both of a page as it is on a device."""
    for dim in (64, 128, 768):
        codes, int8 = code_shape("l2", dim, None), page_shape("l2", dim, "int8")
        assert codes.rows == int8.rows and 8 * codes.nbytes <= int8.nbytes
    vectors, index = coded["l2"]
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig("int8", rows_per_page=PAGE))
    part = of_mesh(Owner(), vectors, np.ones(ROWS, bool), index)
    mesh("c", [part], "l2", clustered(1, 1), TOP_K, recall=0.9)
    slots = -(-ROWS // PAGE // 2)  # on each device
    assert slots <= mesh.nbytes / (PAGE * (SPACES // 2 + 1)) <= slots + 2
    held = [each for pool in mesh._pools.values() for slab in pool.slabs for each in slab.arrays]
    assert {(each.dtype.name, each.shape[2]) for each in held} == {("uint8", SPACES // 2)}


def test_more_ties_than_devices_return(coded: Coded) -> None:
    """Where hundreds of rows sum up to the same, the first ones by their places are candidates, as on a host."""
    vectors, index = coded["l2"]
    vectors = vectors.copy()
    first = index.lists.order[3000]  # and all that follow it in the order of lists get its codes
    vectors[index.lists.order[3000:3700]] = vectors[first]
    products = make_products(index.lists, vectors)
    index = replace(index, codes=replace(products, candidates={10: np.full(len(SHARES), 30)}))
    queries, allowed = np.stack([vectors[first] + 0.01, clustered(1, 1)[0]]), np.ones(ROWS, bool)
    expected = host.search([of_host(vectors, allowed, index)], "l2", queries, TOP_K, 0.9).each()
    assert len(expected[0].rows) > TOP_K and {*expected[0].rows} <= {*index.lists.order[3000:3030]}
    for devices in (1, 4):
        mesh = MeshSearch(mesh_of(devices), MeshSearchConfig(rows_per_page=PAGE))
        same(mesh("c", [of_mesh(Owner(), vectors, allowed, index)], "l2", queries, TOP_K, recall=0.9).each(), expected)


def test_several_parts(coded: Coded) -> None:
    """Of each part its own candidates; beside parts that have no codes, which are searched as a whole."""
    (vectors, index), few = coded["ip"], clustered(3, 900)
    second = clustered(4, ROWS)
    codes = make_product_index("ip", second, CodesMaker("ip", DIM, second.dtype).of(second), None)
    every, queries, told = np.ones(ROWS, bool), clustered(5, 3), Told()
    parts = [
        of_mesh(Owner(), vectors, every, index),
        MeshPart(Owner(), few, every[:900]),
        of_mesh(Owner(), second, every, codes),
    ]
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    found = mesh("c", parts, "ip", queries, TOP_K, told, 0.9).each()
    assert [each["way"] for each in told.entries(["a", "b", "c"])] == ["pq", "mesh", "pq"]
    alone: list[AnyPart] = [
        of_host(vectors, every, index),
        CodedPart(few, CodesMaker("ip", DIM, few.dtype).of(few)),
        of_host(second, every, codes),
    ]
    expected = host.search(alone, "ip", queries, TOP_K, 0.9).each()
    same(found, expected)


def test_what_codes_are_no_good_for(coded: Coded) -> None:
    """All rows, more neighbours than were measured, and what a filter leaves elsewhere than most rows."""
    vectors, index = coded["l2"]
    lopsided = np.zeros(ROWS, bool)
    lopsided[index.lists.order[: ROWS * 2 // 3]] = True
    mesh, queries = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE)), clustered(6, 2)
    for allowed, top_k, recall in [
        (np.ones(ROWS, bool), TOP_K, 1.0),
        (np.ones(ROWS, bool), 2000, 0.9),
        (lopsided, 5, 0.9),
    ]:
        told, part = Told(), of_mesh(Owner(), vectors, allowed, index)
        found = mesh("c", [part], "l2", queries, top_k, told, recall).each()
        assert [each["way"] for each in told.entries(["it"])] == ["mesh"]
        best = np.argsort(np.where(allowed, np.square(vectors - queries[1]).sum(axis=1), np.inf), kind="stable")
        assert found[1].rows[0] == best[0]


def test_through_little_memory(coded: Coded) -> None:
    """Codes larger than the budget pass through it; of several collections those go that were not asked for."""
    page = PAGE * (SPACES // 2 + 1)
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, bytes_per_device=20 * page))
    queries = clustered(1, 3)
    for metric, (vectors, index) in coded.items():
        allowed = np.random.default_rng(2).random(ROWS) > 0.1
        found = mesh(metric, [of_mesh(mesh, vectors, allowed, index)], metric, queries, TOP_K, recall=0.9).each()
        same(found, host.search([of_host(vectors, allowed, index)], metric, queries, TOP_K, 0.9).each())
        assert 0 < mesh.nbytes <= 20 * page
    small = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, bytes_per_device=2 * page - 1))
    with pytest.raises(InputError, match=f"expected at least {2 * page}, two pages of 64 rows of 40 x pq"):
        small("c", [of_mesh(mesh, *coded["l2"][:1], allowed, coded["l2"][1])], "l2", queries, TOP_K, recall=0.9)


def test_a_collection_that_is_written_to(tmp_path: Path) -> None:
    """Deletes, updates, filters and new rows count at once, older versions stay as they were."""
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=mesh, codes="pq") as db:
        vectors, queries = clustered(6, ROWS), clustered(8, 20)
        c = db.create_collection("c", DIM, "cosine", schema={"shelf": int}, ids="int")
        c.upsert(np.arange(ROWS), vectors, {"shelf": np.arange(ROWS) % 10})
        assert c.index() == 1
        assert c.view().with_recall(0.9).explain()[0]["way"] == "pq"
        nearest = [hit.id for hit in c.query(vectors[5], 3, recall=0.99)]
        assert nearest[0] == 5
        before = db.version
        c.delete(nearest[:2])
        c.upsert([ROWS + 1], vectors[5:6], {"shelf": [5]})
        after, how = c.query(vectors[5], 2, recall=0.99, explain=True)
        assert [hit.id for hit in after] == [ROWS + 1, nearest[2]]
        assert [each["way"] for each in how] == ["pq", "mesh"]
        assert [hit.id for hit in c.query(vectors[5], 3, recall=0.99, at=before)] == nearest
        assert {hit.metadata["shelf"] for hit in c.query(vectors[5], 9, {"shelf": {"$gt": 3}}, recall=0.9)} <= {
            *range(4, 10)
        }
        exact, found = c.query(queries, TOP_K), c.query(queries, TOP_K, recall=0.9)
        pairs = zip(exact, found, strict=True)
        assert np.mean([len({a.id for a in x} & {b.id for b in y}) / TOP_K for x, y in pairs]) >= 0.9
    with wdbx.open(tmp_path / "store", mode="r", mesh=mesh, codes="pq") as db:
        c = db.collection("c")
        assert c.query(queries, TOP_K, recall=0.9) == found  # by the codes that were stored
        assert c.view().segments[0]._codes is None  # and no others
    with wdbx.open(tmp_path / "store", mode="r", mesh=mesh) as db:
        assert db.collection("c").query(queries, TOP_K, recall=0.9, explain=True)[1][0]["way"] != "pq"


def test_a_reader_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a query, which looks at all rows meanwhile, or while one waits for them."""
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", DIM, "l2", ids="int")
        c.upsert(np.arange(ROWS), clustered(6, ROWS))
        db.seal()
    go = threading.Event()

    def once_told(*about: Any) -> ProductIndex:
        go.wait(100)
        return make_product_index(*about)

    monkeypatch.setattr("abi_jax.wdbx.search.index.make_product_index", once_told)
    with wdbx.open(tmp_path / "store", mode="r", codes="pq") as db:
        c = db.collection("c").on(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
        exact = c.query(clustered(1, 1)[0], TOP_K)
        assert c.view().with_recall(0.9).explain()[0]["why"].endswith("there are no lists yet")
        (segment,) = c.view().segments
        assert segment._making_products is None  # nothing was begun
        hits, how = c.query(clustered(1, 1)[0], TOP_K, recall=0.9, explain=True)
        assert how[0]["way"] == "mesh" and hits == exact
        go.set()
        assert c.index() == 1
        assert c.query(clustered(1, 1)[0], TOP_K, recall=0.9, explain=True)[1][0]["way"] == "pq"


def test_no_recompilation(tmp_path: Path, compilations: Callable[[], int]) -> None:
    """Whatever is asked, with writes, filters and older versions between."""
    rng = np.random.default_rng(2)
    search = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    with wdbx.open(tmp_path / "store", mesh=search, codes="pq") as db:
        c = db.create_collection("c", DIM, "l2", schema={"n": int}, ids="int")
        c.upsert(np.arange(ROWS), clustered(0, ROWS), {"n": (np.arange(ROWS) % 7).tolist()})
        c.index()
        mixed = partial(mixed_traffic, db, c, rng, clustered, ROWS, [0.8, 0.95])

        mixed(80)
        before = compilations()
        assert before > 0
        mixed(120)
        assert compilations() == before


def test_forms_of_sums() -> None:
    """By look-ups, and as a product, where these are slow: both are what a host adds up."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (7, SPACES, 16), dtype=np.uint8)
    tables = rng.integers(0, 256, (3, SPACES, 16), dtype=np.uint8)
    halves = blocks.transpose(0, 2, 1)
    numbers = np.concatenate([halves & 15, halves >> 4], axis=1).reshape(-1, SPACES)
    expected = np.stack([table[np.arange(SPACES), numbers].sum(axis=1, dtype=np.int64) for table in tables], axis=1)
    for form in (mesh_codes.by_look_up, mesh_codes.by_products):
        np.testing.assert_array_equal(jax.jit(form)(mesh_codes.packed(blocks), tables), expected)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform: str) -> None:
    def shape(*size: int, dtype: type = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype)

    slab = (shape(64, 4096, 16, dtype=np.uint8), shape(64, 4096, dtype=np.bool_), shape(dtype=np.int32))
    asked = (shape(8, 32, 16, dtype=np.uint8), shape(1, 8, 64), shape(1, 8, 64, dtype=np.int32), shape(1, 8))
    form = partial(mesh_codes.scan_codes, tiles=2, platform=platform)
    lowered = jax.jit(form).trace(*slab, *asked, shape(1, 2)).lower(lowering_platforms=(platform,))
    assert ("dot_general" in lowered.as_text()) == (platform == "tpu")

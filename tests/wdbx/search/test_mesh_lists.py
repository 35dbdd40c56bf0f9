"""Lists on a mesh: the rows of the lists that a host would look at, on any number of devices, and of no others."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.search import plan
from abi_jax.wdbx.search.codes import CodesMaker, make_query_codes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.found import Best
from abi_jax.wdbx.search.index import Index, make_index
from abi_jax.wdbx.search.ivf import Lists
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from abi_jax.wdbx.search.mesh_layout import NO_ROW, Layout
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_probe import WIDTH, tables
from abi_jax.wdbx.search.mesh_select import BLOCK
from abi_jax.wdbx.search.told import Told
from tests.wdbx.search.test_mesh import METRICS, mesh_of, naive
from tests.wdbx.search.traffic import mixed_traffic

ROWS, DIM, TOP_K, PAGE, CLUSTERS = 8192, 16, 7, 64, 80


def clustered(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = 3 * np.random.default_rng(7).normal(size=(CLUSTERS, DIM))
    return (centers[rng.integers(0, CLUSTERS, rows)] + 0.5 * rng.normal(size=(rows, DIM))).astype(np.float32)


Indexed = dict[str, tuple[np.ndarray, Lists]]


@pytest.fixture(scope="module")
def indexed() -> Indexed:
    """Vectors and their lists, as a host makes them, by metric."""
    made = {}
    for metric in METRICS:
        vectors = clustered(len(metric), ROWS)
        made[metric] = vectors, make_index(metric, vectors, CodesMaker(metric, DIM, vectors.dtype).of(vectors)).lists
    return made


def looked_at(lists: Lists, query: np.ndarray, allowed: np.ndarray, wanted: float) -> np.ndarray:
    """The rows in the blocks of the lists that a host would choose for a query, bool `[n]`."""
    coded = make_query_codes(lists.metric, query[None])
    if allowed.all():
        chosen = lists.nearest(coded, lists.enough(wanted, TOP_K) or 0)[0]
    else:
        counts = np.array([allowed[lists.order[a:b]].sum() for a, b in zip(lists.ends, lists.ends[1:], strict=False)])
        chosen = choose_lists(lists, counts, coded, TOP_K, wanted)[0]
    made = np.zeros(len(allowed), bool)
    for number in chosen[chosen >= 0]:
        begin, end = lists.ends[number : number + 2]
        made[lists.order[begin // BLOCK * BLOCK : -(-end // BLOCK) * BLOCK if end > begin else 0]] = True
    return made & allowed


def expected(metric: str, query: np.ndarray, vectors: np.ndarray, among: np.ndarray) -> tuple[list[int], np.ndarray]:
    scores = naive(metric, query, vectors)
    keys = np.where(among, scores if metric == "l2" else -scores, np.inf)
    best = np.argsort(keys, kind="stable")[: min(TOP_K, int(among.sum()))]
    return best.tolist(), scores[best]


MASKS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "all": lambda rng: np.ones(ROWS, bool),
    "a tenth deleted": lambda rng: rng.random(ROWS) > 0.1,
    "a filter": lambda rng: rng.random(ROWS) < 0.4,
}


@pytest.mark.parametrize(("devices", "compute"), [(1, "float32"), (2, "float32"), (4, "int8"), (8, "bfloat16")])
def test_the_rows_of_the_lists_that_a_host_looks_at(devices: int, compute: str, indexed: Indexed) -> None:
    mesh = MeshSearch(mesh_of(devices), MeshSearchConfig(compute, rows_per_page=PAGE))
    queries = clustered(1, 4)
    for metric, (vectors, lists) in indexed.items():
        owner = object_of_its_own()
        for allowed in (make(np.random.default_rng(2)) for make in MASKS.values()):
            told = Told()
            parts = [MeshPart(owner, vectors, allowed, lambda lists=lists: lists)]  # type: ignore[misc]
            found = mesh(metric, parts, metric, queries, TOP_K, told, 0.9).each()
            for query, best in zip(queries, found, strict=True):
                some = looked_at(lists, query, allowed, 0.9)
                assert some.sum() >= TOP_K
                rows, scores = expected(metric, query, vectors, some)
                assert best.rows[:TOP_K].tolist() == rows
                np.testing.assert_allclose(best.scores[:TOP_K], scores, rtol=1e-5)
            (entry,) = told.entries(["it"])
            assert (entry["way"], entry["queries"]) == ("ivf", 4)
            assert entry["rows"] < ROWS / 4 and entry["why"].startswith(f"{devices} devices of type cpu")
            exact = mesh(metric, parts, metric, queries, TOP_K).each()  # by the same pages
            assert [each.rows[:TOP_K].tolist() for each in exact] == [
                expected(metric, query, vectors, allowed)[0] for query in queries
            ]


def object_of_its_own() -> object:
    """What pages may belong to."""
    return type("Owner", (), {})()


def test_where_too_little_is_in_the_lists_all_rows_are_searched(indexed: Indexed) -> None:
    """And where more rows tie than a device returns; others are not asked again."""
    vectors, lists = indexed["l2"]
    promising = np.eye(1, len(lists.centroids), dtype=np.int64)[0] * 1000  # as if all were in the nearest list
    lists = replace(lists, ranks={1000: promising})
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    queries, allowed, wanted = clustered(3, 6), np.ones(ROWS, bool), 100
    told = Told()
    part = MeshPart(mesh, vectors, allowed, lambda: lists)
    found = mesh("c", [part], "l2", queries, wanted, told, 0.5).each()
    assert all(len(each.rows) >= wanted for each in found)
    entries = {each["way"]: each for each in told.entries(["it"])}
    assert entries["ivf"]["queries"] + entries["mesh"]["queries"] == 6
    assert "lists held too few rows" in entries["mesh"]["why"] and entries["mesh"]["rows"] > ROWS
    exact = mesh("c", [part], "l2", queries, wanted).each()
    same = sum(a.rows.tolist() == b.rows.tolist() for a, b in zip(exact, found, strict=True))
    assert same >= entries["mesh"]["queries"] > 0


def test_many_queries_at_once_look_at_all_rows(indexed: Indexed) -> None:
    """Products of many queries and all rows take no longer than lists for each of them; and there may be no lists."""
    vectors, lists = indexed["l2"]
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))
    for queries, made, why in [
        (64, lists, "for 64 queries at once all rows take no longer"),
        (1, None, "there are no lists yet"),
    ]:
        told = Told()
        part = MeshPart(mesh, vectors, np.ones(ROWS, bool), lambda made=made: made)  # type: ignore[misc]
        found: list[Best] = mesh("c", [part], "l2", clustered(4, queries), 300, told, 0.99).each()
        (entry,) = told.entries(["it"])
        assert entry["way"] == "mesh" and why in entry["why"]
        assert found[0].rows[:TOP_K].tolist() == expected("l2", clustered(4, queries)[0], vectors, part.allowed)[0]


def test_rows_that_stream_are_searched_as_a_whole(indexed: Indexed) -> None:
    vectors, lists = indexed["ip"]
    page = PAGE * (DIM * 4 + 9)
    parts = [MeshPart(object_of_its_own(), vectors, np.ones(ROWS, bool), lambda: lists)]
    queries = clustered(5, 2)
    for pages, way in [(20, "mesh"), (200, "ivf")]:
        mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, bytes_per_device=pages * page))
        told = Told()
        found = mesh("c", parts, "ip", queries, TOP_K, told, 0.9).each()
        assert [each["way"] for each in told.entries(["it"])] == [way] and mesh.nbytes <= pages * page
        assert (
            way == "ivf" or found[1].rows[:TOP_K].tolist() == expected("ip", queries[1], vectors, parts[0].allowed)[0]
        )


def test_a_collection_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletes, updates and new rows count at once, older versions stay as they were, new segments get their lists."""
    mesh = MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE, lists="mesh"))
    with wdbx.open(tmp_path / "store", mesh=mesh) as db:
        vectors, queries = clustered(6, ROWS), clustered(8, 20)
        c = db.create_collection("c", DIM, "cosine", schema={"shelf": int}, ids="int")
        c.upsert(np.arange(ROWS), vectors, {"shelf": np.arange(ROWS) % 10})
        assert c.index() == 1
        assert {"add", "centroids", "assign"} <= {key[0] for key in mesh.programs._made}  # k-means was done there
        nearest = [hit.id for hit in c.query(vectors[5], 3, recall=0.9)]
        assert nearest[0] == 5
        before = db.version
        c.delete(nearest[:2])
        c.upsert([ROWS + 1], vectors[5:6], {"shelf": [5]})
        after, how = c.query(vectors[5], 2, recall=0.9, explain=True)
        assert [hit.id for hit in after] == [ROWS + 1, nearest[2]]
        assert [each["way"] for each in how] == ["ivf", "mesh"]
        assert [hit.id for hit in c.query(vectors[5], 3, recall=0.9, at=before)] == nearest
        assert {hit.metadata["shelf"] for hit in c.query(vectors[5], 9, {"shelf": {"$gt": 4}}, recall=0.9)} <= {
            *range(5, 10)
        }
        c.upsert(np.arange(2 * ROWS, 2 * ROWS + 900), clustered(9, 900), {"shelf": [0] * 900})
        monkeypatch.setattr(plan, "WORTH_LISTS", 800)
        assert c.index() == 2
        exact, (found, how) = c.query(queries, TOP_K), c.query(queries, TOP_K, recall=0.9, explain=True)
        assert [each["way"] for each in how] == ["ivf", "mesh", "mesh"]  # some rows are not worth a look at lists
        pairs = zip(exact, found, strict=True)
        assert np.mean([len({a.id for a in x} & {b.id for b in y}) / TOP_K for x, y in pairs]) >= 0.9
        host = replace(c.view().with_recall(0.9), mesh=None)
        assert host.search(queries[:4], TOP_K) == c.query(queries[:4], TOP_K, recall=0.9)
        hits = c.query(queries, TOP_K, recall=0.9)
    with wdbx.open(tmp_path / "store", mode="r", mesh=mesh) as db:
        assert all(each.lists() is not None for each in db.collection("c").view().segments)  # those that were stored
        assert db.collection("c").query(queries, TOP_K, recall=0.9) == hits


def test_a_reader_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a query, which looks at all rows meanwhile, or while one waits for them; on the host, which is quicker."""
    vectors, mesh = clustered(6, ROWS), mesh_of(2)
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", DIM, "ip", ids="int")
        c.upsert(np.arange(ROWS), vectors)
        db.seal()
    go = threading.Event()

    def once_told(*about: Any) -> Index:
        go.wait(100)
        return make_index(*about)

    monkeypatch.setattr("abi_jax.wdbx.search.index.make_index", once_told)
    with wdbx.open(tmp_path / "store", mode="r") as db:
        c = db.collection("c").on(mesh, MeshSearchConfig(rows_per_page=PAGE))
        exact = c.query(vectors[3], TOP_K)
        (segment,) = c.view().segments
        told = c.view().with_recall(0.9).explain()
        assert (told[0]["way"], told[0]["why"]) == ("mesh", "2 devices of type cpu; there are no lists yet")
        assert segment._listing is None  # nothing was begun
        hits, how = c.query(vectors[3], TOP_K, recall=0.9, explain=True)
        assert hits == exact and how[0]["way"] == "mesh" and how[0]["why"].endswith("there are no lists yet")
        go.set()
        assert c.index() == 1
        assert c.query(vectors[3], TOP_K, recall=0.9, explain=True)[1][0]["way"] == "ivf"
        assert c.view().with_recall(0.9).explain()[0]["way"] == "ivf"
        assert segment._codes is None and segment._index is None  # no codes of rows were kept


def test_no_recompilation(tmp_path: Path, compilations: Callable[[], int]) -> None:
    """Whatever lists queries look at, with writes, filters and older versions between them."""
    rng = np.random.default_rng(2)
    with wdbx.open(tmp_path / "store", mesh=MeshSearch(mesh_of(2), MeshSearchConfig(rows_per_page=PAGE))) as db:
        c = db.create_collection("c", DIM, "l2", schema={"n": int}, ids="int")
        c.upsert(np.arange(ROWS), clustered(0, ROWS), {"n": (np.arange(ROWS) % 7).tolist()})
        c.index()
        mixed = partial(mixed_traffic, db, c, rng, clustered, ROWS, [0.8, 0.95, 1.0])

        mixed(80)
        before = compilations()
        assert before > 0
        mixed(160)
        assert compilations() == before


@pytest.mark.parametrize("rows", [8000, 8192, 8193])
@pytest.mark.parametrize("per_page", [32, 512])
def test_every_row_has_one_place(rows: int, per_page: int) -> None:
    rng = np.random.default_rng(rows)
    lists = rng.integers(0, 50, rows)
    lists[lists == 7] = 8  # an empty one
    order = np.argsort(lists, kind="stable").astype(np.int32)
    ends = np.searchsorted(lists[order], np.arange(51))
    layout = Layout(Lists("l2", np.zeros((50, 4), np.float32), order, ends, {}), per_page)
    assert len(layout.rows) == layout.pages * per_page < rows + per_page
    assert sorted(layout.rows[layout.rows != NO_ROW].tolist()) == list(range(rows))
    chosen = np.array([[3, 4, -1, 7], [49, 0, 12, -1]], np.int32)
    query, block = layout.blocks_of(chosen)
    page, inside = layout.places
    for q, wanted in enumerate(chosen):
        mine = block[query == q]
        assert len(mine) == len(set(mine.tolist()))
        at = (page[mine] * per_page + inside[mine] * BLOCK)[:, None] + np.arange(BLOCK)
        assert set(np.flatnonzero(np.isin(lists, wanted))) <= set(layout.rows[at].ravel().tolist())
        assert len(mine) <= sum(-(-np.count_nonzero(lists == each) // BLOCK) + 1 for each in wanted[wanted >= 0])
    spread = np.bincount(page[block[query == 1]] * 4 // layout.pages, minlength=4)  # over four devices
    assert spread.max() - spread.min() <= 4


def test_tables_of_blocks() -> None:
    query, device, block = np.array([0, 1, 0, 0]), np.array([1, 0, 1, 0]), np.array([5, 6, 7, 8])
    (made,) = tables(query, device, block, 3, 2)
    assert made.shape == (2, 3, WIDTH)
    expected = [[[8], [6], []], [[5, 7], [], []]]
    assert [[each[each >= 0].tolist() for each in queries] for queries in made] == expected
    assert (made[1, 0, :2] >= 0).all()  # the first ones
    many = tables(np.zeros(WIDTH + 2, int), np.zeros(WIDTH + 2, int), np.arange(WIDTH + 2), 1, 1)
    assert [np.count_nonzero(each >= 0) for each in many] == [WIDTH, 2]
    assert tables(query[:0], device[:0], block[:0], 3, 2) == []

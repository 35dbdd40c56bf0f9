"""Filters pass the rows that a plain reading of them passes, whatever is sealed, and k rows where k match."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.filters import key_of

SCHEMA = {"lang": str, "year": int, "grade": float, "ok": bool, "at": "time", "raw": bytes, "tags": "list[str]"}
SCHEMA |= {"nums": "list[int]"}
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lang": st.sampled_from(["", "en", "de", "english", "Ü", "a.c"]),
    "year": st.integers(-2, 2),
    "grade": st.sampled_from([-1.5, -0.0, 0.0, 0.1, 2.0, float("inf")]),
    "ok": st.booleans(),
    "at": st.integers(-2, 2).map(lambda days: EPOCH + timedelta(days)),
    "raw": st.sampled_from([b"", b"x", b"xy"]),
    "tags": st.lists(st.sampled_from(["new", "old", ""]), max_size=2),
    "nums": st.lists(st.integers(0, 2), max_size=2),
}
ROW = st.fixed_dictionaries({}, optional=VALUES)
DENIED = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains", "$not_regex": "$regex"}
ORDERED = ("$gt", "$gte", "$lt", "$lte")


def _condition(field: str) -> st.SearchStrategy[Any]:
    if field in ("tags", "nums"):
        value = st.integers(0, 2) if field == "nums" else st.sampled_from(["new", "old", ""])
        single = ["$eq", "$ne", "$contains", "$not_contains"]
    else:
        value = VALUES[field]
        single = ["$eq", "$ne", *(ORDERED if field != "ok" else ())]
        single += ["$contains", "$not_contains"] if field == "lang" else []
    made = [st.tuples(st.sampled_from(single), value)]
    made += [st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(value, max_size=3))]
    made += [st.tuples(st.just("$exists"), st.booleans())]
    if field == "lang":
        made += [
            st.tuples(st.sampled_from(["$regex", "$not_regex"]), st.sampled_from(["^e", "n$", "a.c", r"a\.c", ""]))
        ]
    clauses = st.lists(st.one_of(made), min_size=1, max_size=2).map(dict)
    return st.one_of(clauses, value, st.none()).map(lambda wanted: {field: wanted})


LEAF = st.sampled_from(list(VALUES)).flatmap(_condition)


def _joined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        inner,
        several.map(lambda each: {"$and": each}),
        several.map(lambda each: {"$or": each}),
        inner.map(lambda each: {"$not": each}),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    )


WHERE = _joined(_joined(LEAF))


def passes(row: dict[str, Any], where: dict[str, Any]) -> bool:
    """A filter read plainly."""
    return all(_clause(row, key, wanted) for key, wanted in where.items())


def _clause(row: dict[str, Any], key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(passes(row, each) for each in wanted)
    if key == "$or":
        return any(passes(row, each) for each in wanted)
    if key == "$not":
        return not passes(row, wanted)
    conditions = wanted if isinstance(wanted, dict) else {"$eq": wanted}
    return all(_holds(row.get(key), name, operand) for name, operand in conditions.items())


def _holds(value: Any, name: str, operand: Any) -> bool:
    if name == "$exists":
        return bool((value is not None) == operand)
    if operand is None:
        return (value is None) == (name == "$eq")
    if name in DENIED:
        return not _holds(value, DENIED[name], operand)
    if value is None:
        return False
    if isinstance(value, list):
        return any(each in value for each in (operand if name == "$in" else [operand]))
    compared = {
        "$eq": lambda: value == operand,
        "$gt": lambda: value > operand,
        "$gte": lambda: value >= operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: value <= operand,
        "$in": lambda: value in operand,
        "$contains": lambda: operand in value,
        "$regex": lambda: re.search(operand, value) is not None,
    }
    return bool(compared[name]())


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.lists(WHERE, min_size=1, max_size=6), st.integers(0, 12))
def test_as_read_plainly(rows: list[dict[str, Any]], filters: list[dict[str, Any]], sealed: int) -> None:
    with TemporaryDirectory() as folder, wdbx.open(Path(folder) / "store") as db:
        c = db.create_collection("c", 1, "l2", schema=SCHEMA, ids="int")
        for start, part in ((0, rows[:sealed]), (sealed, rows[sealed:])):
            if part:
                c.upsert(range(start, start + len(part)), [[start + i] for i in range(len(part))], part)
            if not start:
                db.seal()
        for where in filters:
            expected = [i for i, row in enumerate(rows) if passes(row, where)]
            for top_k in (1, 3, len(rows)):
                found = c.query([0.0], top_k=top_k, where=where)
                assert [hit.id for hit in found] == expected[:top_k], where


def test_k_rows_where_k_match_among_many(tmp_path: Path) -> None:
    """Also where the rows that match are the farthest of all, few, and behind codes."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6000, 8)).astype(np.float32)
    rare = np.argsort(-np.linalg.norm(vectors - vectors[0], axis=1))[:25]
    kind = np.full(6000, "common", object)
    kind[rare] = "rare"
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 8, "l2", schema={"kind": str}, ids="int")
        c.upsert(range(5000), vectors[:5000], {"kind": kind[:5000]})
        db.seal()
        c.upsert(range(5000, 6000), vectors[5000:], {"kind": kind[5000:]})
        found = c.query(vectors[0], top_k=20, where={"kind": "rare"})
        assert [hit.id for hit in found] == rare[::-1][:20].tolist()
        assert len(c.query(vectors[0], top_k=40, where={"kind": "rare"})) == 25


def test_times(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"at": "time"})
        c.upsert(["a", "b"], [[0], [1]], [{"at": EPOCH}, {"at": EPOCH + timedelta(hours=36)}])
        later: Any
        for later in (
            datetime(2020, 1, 2),
            "2020-01-02",
            "2020-01-02T00:00:00Z",
            "2020-01-02T02:00+02:00",
            date(2020, 1, 2),
        ):
            assert [hit.id for hit in c.query([0], where={"at": {"$gte": later}})] == ["b"]
        assert [hit.id for hit in c.query([0], where={"at": "2020-01-01"})] == ["a"]
        with pytest.raises(InputError, match="filter on 'at' compares with 'soon'; the field has type timestamp"):
            c.query([0], where={"at": {"$lt": "soon"}})


@pytest.mark.parametrize("schema", [{}, {"year": int}])
@pytest.mark.parametrize("sealed", [0, 1, 3])
def test_filters_that_ask_for_nothing(tmp_path: Path, schema: dict[str, Any], sealed: int) -> None:
    """As other stores' users pass them; also of a collection whose rows have no fields."""
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema=schema, ids="int")
        for i in range(3):
            c.upsert([i], [[i]])
            if i + 1 == sealed:
                db.seal()
        everybody: list[dict[str, Any]] = [{}, {"$not": {"$not": {}}}, {"$or": [{}, {"$not": {}}]}]
        nobody: list[dict[str, Any]] = [{"$not": {}}, {"$and": [{}, {"$not": {}}]}]
        for where in everybody:
            assert [hit.id for hit in c.query([0], where=where)] == [0, 1, 2] == c.ids(where)
        for where in nobody:
            assert c.query([0], where=where) == c.ids(where) == []


def test_keys_tell_filters_apart() -> None:
    """Also of mappings that do not say what they hold, and arrays that say it in short."""

    class Quiet(Mapping[str, Any]):
        def __init__(self, held: dict[str, Any]) -> None:
            self._held = held

        def __getitem__(self, key: str) -> Any:
            return self._held[key]

        def __iter__(self) -> Iterator[str]:
            return iter(self._held)

        def __len__(self) -> int:
            return len(self._held)

        def __repr__(self) -> str:
            return "quiet"

    many = list(range(5000))
    filters: list[Any] = [Quiet({"year": year}) for year in (1, 2)]
    filters += [{"year": {"$in": many}}, {"year": {"$in": [*many[:2500], -1, *many[2501:]]}}, {"year": "1"}]
    assert len({key_of(each) for each in filters}) == len(filters)
    assert key_of(filters[0]) == key_of({"year": 1})


def test_a_filter_that_is_remembered_is_not_taken_for_another(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"year": int, "lang": str}, ids="int")
        c.upsert(range(100), np.zeros((100, 1)), {"year": list(range(100)), "lang": ["1"] * 100})
        db.seal()
        for _ in range(2):
            for year in range(12):
                assert [hit.id for hit in c.query([0], where={"year": year})] == [year]
        assert len(c.query([0], top_k=200, where={"lang": "1"})) == 100
        c.delete([3])
        assert c.query([0], where={"year": 3}) == []
        assert [hit.id for hit in c.query([0], where={"year": 3}, at=db.version - 1)] == [3]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"yaer": 1}, "filter on 'yaer': collection c has the fields lang, year, grade"),
        ({"year": "2020"}, "filter on 'year' compares with '2020'; the field has type int64"),
        ({"year": {"$gte": 2020.5}}, "compares with 2020.5"),
        ({"year": True}, "compares with True"),
        ({"year": 2**70}, "compares with 1180591620717411303424"),
        ({"ok": {"$gt": False}}, "'ok', bool: .gt; expected .eq"),
        ({"grade": float("nan")}, "compares with nan"),
        ({"year": {"$near": 3}}, "filter on 'year' has '.near'; expected one of"),
        ({"year": {"$in": 3}}, r".in or .nin 3; expected a list"),
        ({"year": {"$contains": 3}}, "'year', int64: .contains; expected a text or a list"),
        ({"year": {"$regex": "2"}}, "'year', int64: .regex; expected a text$"),
        ({"lang": {"$regex": "("}}, "is no regular expression"),
        ({"tags": {"$gt": "a"}}, "'tags', a list: .gt; expected .contains"),
        ({"tags": 3}, "compares with 3; the field has type string"),
        ({"year": {}}, "filter on 'year' is empty"),
        ({"year": {"$exists": 1}}, ".exists 1; expected true or false"),
        ({"$or": []}, "expected a list of filters"),
        ({"$not": 3}, "filter 3: expected a mapping"),
        ([], r"filter \[\]: expected a mapping"),
    ],
)
def test_filters_that_make_no_sense(where: Any, message: str, tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, schema=SCHEMA)
        with pytest.raises(InputError, match=message):
            c.query([1], where=where)

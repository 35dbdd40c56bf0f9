"""Numbers that NumPy made are numbers; what only looks like one is refused by name."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.rows import make_metadata
from abi_jax.wdbx.spec import CollectionSpec


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with wdbx.open(tmp_path_factory.mktemp("given") / "store") as db:
        yield fill(db)


def fill(db: wdbx.Database) -> Any:
    made = db.create_collection("c", 2, "l2", schema={"year": int, "grade": float, "ok": bool}, ids="int")
    about = [{"year": 1, "grade": 0.5, "ok": True}] * 3
    made.upsert([np.int64(5), 6, np.uint8(7)], [[5, 0], [6, 0], [7, 0]], about)
    return made


def test_numbers_of_numpy(c: Any) -> None:
    row = c.get(np.int64(5))[0]
    assert row is not None and row.vector.tolist() == [5, 0] and type(row.id) is int
    assert [row and row.id for row in c.get([np.int32(7), 6])] == [7, 6]
    assert [hit.id for hit in c.query([5, 0], top_k=np.int64(2))] == [5, 6]
    assert [hit.id for hit in c.query([5, 0], top_k=1, recall=np.float32(0.5))] == [5]
    assert c.view().search_arrays(np.array([[7, 0]]), np.uint8(1))[0].tolist() == [[7]]
    where = {"year": np.int64(1), "grade": {"$lt": np.float32(0.75)}, "ok": np.True_}
    assert len(c.query([5, 0], where=where)) == 3
    assert c.get(5, at=np.int64(1)) == [None]
    assert c.prove(np.int64(5)).id == 5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (int, np.arange(-4, 4)[::2]),
        (int, np.arange(4, dtype=np.uint8)),
        (float, np.array([0.1, np.nan, -np.inf, -0.0])),
        (float, np.arange(4)),
        (float, np.arange(4, dtype=np.float32) / 3),
        (bool, np.array([True, False, False, True])),
        (str, np.array(["a", "", "ä", "d"])),
        (int, np.array([1, None, 3, 4], object)),
        (int, np.ma.array([1, 2, 3, 4], mask=np.arange(4) == 1)),
    ],
)
def test_columns_of_numpy_are_what_their_values_are(kind: type, values: np.ndarray) -> None:
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("field", kind.__name__),))
    made = make_metadata(spec, {"field": values}, 4).column("field")
    assert made.equals(pa.array(values.tolist(), made.type)) or np.isnan(values).any()
    assert str(made) == str(pa.array(values.tolist(), made.type))


def test_ids_of_numpy_are_deleted(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = fill(db)
        assert c.delete([np.int64(5), np.uint64(6)]) == 2
        assert c.ids() == [7]


def test_records_with_ids_of_numpy() -> None:
    with wdbx.Client() as client:
        client.insert("c", [{"doc_id": np.int64(i), "vector": [i, 1]} for i in range(3)])
        assert client.database.collection("c").spec.ids == "int"
        assert client.get("c", np.int64(2))["doc_id"] == 2


@pytest.mark.parametrize("top_k", [0, -1, 2.0, "2", True, np.float64(2), None, np.array([1, 2])])
def test_a_top_k_that_is_none(c: Any, top_k: Any) -> None:
    for asked in (c.query, c.view().query, lambda *args: c.view().search_arrays([args[0]], args[1])):
        with pytest.raises(InputError, match=r"top_k .*: expected a whole number from 1"):
            asked([5, 0], top_k)


@pytest.mark.parametrize("recall", ["0.9", float("nan"), 0, 1.5, -0.5, None, True, [0.9]])
def test_a_recall_that_is_none(c: Any, recall: Any) -> None:
    with pytest.raises(InputError, match=r"recall .*: expected a number above 0, up to 1"):
        c.query([5, 0], recall=recall)


@pytest.mark.parametrize("id_", [True, 5.0, "5", None, np.float64(5), np.True_])
def test_an_id_that_is_no_whole_number(c: Any, id_: Any) -> None:
    for asked in (c.get, c.delete, lambda ids: c.upsert(ids, [[1, 1]])):
        with pytest.raises(InputError, match=r"id .* \(number 0\): collection c has ids of type int"):
            asked([id_])
    assert len(c) == 3


def test_ids_that_are_no_list(c: Any) -> None:
    for asked in (c.delete, lambda ids: c.upsert(ids, [[1, 1]])):
        with pytest.raises(InputError, match="ids 5: expected a list of them"):
            asked(5)
    with pytest.raises(InputError, match="id 18446744073709551615: expected a whole number of 64 bits"):
        c.get(np.uint64(2**64 - 1))


def test_errors_speak_of_queries(c: Any) -> None:
    with pytest.raises(InputError, match=r"^queries have shape \(1, 3\)"):
        c.query([1, 2, 3])
    with pytest.raises(InputError, match=r"^queries differ in length"):
        c.view().search([[1, 2], [3]])


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        ("time", [datetime(2020, 1, 1), 1_700_000_000], "row 1 is 1700000000"),
        ("time", pa.array([1_700_000_000]), "row 0 is 1700000000"),
        ("time", ["soon"], "row 0 is 'soon'"),
        ("float", [0.5, True], "row 1 is True"),
        ("int", pa.array(["5"]), "row 0 is '5'"),
        ("str", pa.array([5]), "row 0 is 5"),
        ("bool", pa.array([7]), "row 0 is 7"),
        ("bytes", ["text"], "row 0 is 'text'"),
        ("str", [b"bytes"], "row 0 is b'bytes'"),
        ("list[int]", pa.array([["1"]]), r"row 0 is \['1'\]"),
    ],
)
def test_values_of_another_kind(kind: str, values: Any, told: str) -> None:
    """Arrow would make something of each of them: of a number a time of 1970."""
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("field", kind),))
    with pytest.raises(InputError, match=f"field 'field' of {told}; expected"):
        make_metadata(spec, {"field": values}, len(values))


@pytest.mark.parametrize(
    "values",
    [
        ["2020-01-02", date(2020, 1, 2), datetime(2020, 1, 2), "2020-01-02T02:00+02:00", None],
        np.array(["2020-01-02"] * 4 + ["nat"], "datetime64[ns]"),
        pa.array([date(2020, 1, 2)] * 4 + [None]),
    ],
)
def test_times_as_people_give_them(values: Any) -> None:
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("at", "time"),))
    made = make_metadata(spec, {"at": values}, 5).column("at").to_pylist()
    assert made == [datetime(2020, 1, 2, tzinfo=UTC)] * 4 + [None]


def test_columns_of_another_width() -> None:
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("year", "int"), ("grade", "float"), ("lang", "str")))
    columns = {
        "year": pa.array([1, 2], pa.uint8()),
        "grade": pa.array([1, 2], pa.int32()),
        "lang": pa.array(["en", "de"]).dictionary_encode(),
    }
    made = make_metadata(spec, columns, 2).to_pydict()
    assert made == {"year": [1, 2], "grade": [1.0, 2.0], "lang": ["en", "de"]}


def test_columns_of_pandas_have_no_value_where_pandas_has_none() -> None:
    pd = pytest.importorskip("pandas")
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("at", "time"), ("year", "int"), ("lang", "str")))
    day = datetime(2020, 1, 2, tzinfo=UTC)
    columns = {
        "at": pd.Series(pd.to_datetime(["2020-01-02", None])),
        "year": pd.Series([1, None], dtype="Int64"),
        "lang": pd.Series(["en", None], dtype="category"),
    }
    assert make_metadata(spec, columns, 2).to_pydict() == {"at": [day, None], "year": [1, None], "lang": ["en", None]}
    listed = [{"at": pd.Timestamp("2020-01-02")}, {"at": pd.NaT}]
    assert make_metadata(spec, listed, 2).column("at").to_pylist() == [day, None]


@pytest.mark.parametrize("unit", ["D", "h", "m", "s", "ms", "us", "ns"])
def test_times_of_numpy_in_every_unit(unit: str) -> None:
    spec = CollectionSpec("c", 2, "l2", "float32", "int", (("at", "time"),))
    values = np.array(["2020-01-02", "NaT"], f"M8[{unit}]")
    assert make_metadata(spec, {"at": values}, 2).column("at").to_pylist() == [datetime(2020, 1, 2, tzinfo=UTC), None]
    with pytest.raises(InputError, match="field 'at'"):
        make_metadata(spec, {"at": values.reshape(2, 1)}, 2)

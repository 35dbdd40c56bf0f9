"""Numbers that NumPy made are numbers; what only looks like one is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError


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

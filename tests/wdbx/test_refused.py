"""What a store refuses: to write to what was dropped, to keep what is gone, texts that no file can hold."""

from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.records import RecordSeals
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.log.commit import Draft
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.storage.local import LocalStorage

HALF = "\ud800"  # of a character


def test_a_dropped_collection(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 1]])
        db.drop_collection("c")
        version = db.version
        for change in (lambda: c.upsert(["b"], [[1, 1]]), lambda: c.delete(["a"])):
            with pytest.raises(wdbx.WdbxError, match=f"collection 'c' was dropped at version {version}"):
                change()
        assert db.version == version
        db.create_collection("c", 2).upsert(["new"], [[1, 1]])
        assert db.collection("c").ids() == ["new"]


def test_dropped_by_another_thread() -> None:
    """What is written in one group with the drop, behind it, is refused, too, unless the group is not written."""
    seals = RecordSeals(bytes(16), None, None, "log/x")
    drop, upsert = Draft(Kind.DROP, 3, 0, b""), Draft(Kind.UPSERT, 3, 1, b"")
    assert seals.refused(upsert) is None and seals.refused(drop) is None
    assert "collection 3 was dropped" in str(seals.refused(upsert))
    assert seals.refused(Draft(Kind.UPSERT, 4, 1, b"")) is None
    seals.failed()
    assert seals.refused(upsert) is None


def test_a_tag_of_what_is_gone(tmp_path: Path) -> None:
    with Database(LocalStorage(tmp_path / "store"), retention=0, background=False) as db:
        c = db.create_collection("c", 2)
        old = c.upsert(["a"], [[1, 1]])
        db.tag("kept", c.upsert(["a"], [[2, 1]]))
        c.upsert(["a"], [[3, 1]])
        db.compact()
        with pytest.raises(InputError, match=f"version {old} of collection 'c' is no longer kept; expected {old + 1}"):
            db.tag("old", old)
        db.tag("again", "kept")
        db.tag("now")
        assert [c.get("a", at=tag)[0].vector.tolist() for tag in ("again", "now")] == [[2, 1], [3, 1]]  # type: ignore[union-attr]


def test_half_characters(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        with pytest.raises(InputError, match=r"field '\\ud800' is not valid Unicode"):
            db.create_collection("c", 2, schema={HALF: str})
        c = db.create_collection("c", 2, schema={"text": str, "list": "list[str]"})
        for name, value in (("text", HALF), ("list", [HALF])):
            with pytest.raises(InputError, match=rf"field '{name}' of row 1 is .*\\ud800"):
                c.upsert(["a", "b"], [[1, 1]] * 2, [{}, {name: value}])
            with pytest.raises(InputError, match=rf"field '{name}' of row 0 is .*\\ud800"):
                c.import_([{"id": "a", "vector": [1, 1], name: value}])
        with pytest.raises(InputError, match=r"tag '\\ud800' is not valid Unicode"):
            db.tag(HALF)
        assert db.version == 1


def test_an_id_that_is_asked_for_twice(tmp_path: Path) -> None:
    """At a version since which its row was replaced."""
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2)
        old = c.upsert(["a"], [[1, 1]])
        c.upsert(["a"], [[2, 1]])
        found = c.get(["a", "b", "a"], at=old)
        assert [row and row.vector.tolist() for row in found] == [[1, 1], None, [1, 1]]


def test_a_tenant_that_was_erased_begins_again(tmp_path: Path) -> None:
    """With a key of its own: the one that was taken away is used no more, in the same log either."""
    key = bytes(range(32))
    with Database(LocalStorage(tmp_path / "store"), background=False, key=key) as db:
        db.create_collection("old", 2, tenant="T").upsert(["a"], [[1, 1]])
        db.erase_tenant("T")
        db.create_collection("new", 2, tenant="T").upsert(["b"], [[1, 1]])
    with wdbx.open(tmp_path / "store", key=key) as db:
        assert db.collections() == ["new"]
        assert db.collection("new").ids() == ["b"]
        assert db.verify() == []

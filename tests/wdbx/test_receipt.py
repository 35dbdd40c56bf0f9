"""A receipt kept elsewhere finds a store that was set back or rewritten; stores and models name each other."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.lineage import Chain
from abi_jax.lineage_receipt import new_key, read_receipt
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.verify import verify
from tests.test_lineage import link


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Database(LocalStorage(tmp_path / "store"), background=False) as db:
        c = db.create_collection("c", 2)
        for i in range(3):
            c.upsert([f"{i}"], [[1, i]])
            db.seal()
        c.upsert(["last"], [[1, 9]])
    return tmp_path / "store"


def test_a_store_that_has_grown_still_fits(root: Path, tmp_path: Path) -> None:
    with wdbx.open(root) as db:
        receipt = db.receipt()
        assert (receipt.kind, receipt.number, receipt.head) == ("memory", db.version, db.link())
        (tmp_path / "receipt.json").write_text(receipt.text())
        db.collection("c").upsert(["more"], [[2, 2]])
        db.seal()
        assert db.verify(read_receipt(tmp_path / "receipt.json")) == []
        early = db.receipt(at=2)
        assert early.head == next(said["link"] for said in db.log() if said["version"] == 2)
        assert db.verify(early) == []


def test_a_store_set_back_whole(root: Path, tmp_path: Path) -> None:
    """Every file is as it once was, so that the store alone cannot tell."""
    shutil.copytree(root, tmp_path / "old")
    with wdbx.open(root) as db:
        db.collection("c").delete(["last"])
        receipt = db.receipt()
    old = LocalStorage(tmp_path / "old")
    assert verify(old) == []
    (found,) = verify(old, receipt=receipt)
    assert found.holds == f"version {receipt.number}" and "the store was set back, or cut off" in found.wrong
    with wdbx.open(tmp_path / "old") as db:  # and goes on another way
        db.collection("c").delete(["0"])
        (found,) = db.verify(receipt)
    assert "it was rewritten" in found.wrong


def test_another_store(root: Path, tmp_path: Path) -> None:
    with wdbx.open(root) as db:
        receipt = db.receipt(at=2)
    with wdbx.open(tmp_path / "other") as db:
        db.create_collection("c", 2).upsert(["0"], [[1, 0]])
        assert {each.file for each in db.verify(receipt)} == {"wdbx.json", "log"}


def test_whose_signature(root: Path, tmp_path: Path) -> None:
    key, stranger = new_key(tmp_path / "key.pem"), new_key(tmp_path / "stranger.pem")
    public = key.public_key().public_bytes_raw().hex()
    with wdbx.open(root, mode="r") as db:
        receipt = db.receipt(sign_with=tmp_path / "key.pem")
        assert receipt.public_key == public and db.verify(receipt, public) == []
        assert "expected" in db.verify(db.receipt(stranger), public)[0].wrong
        assert "signed with no key" in db.verify(db.receipt(), public)[0].wrong
        for name, value in asdict(receipt).items():
            text = str(value)
            other: Any = value + 1 if isinstance(value, int) else ("1" if text[0] == "0" else "0") + text[1:]
            changed: dict[str, Any] = {name: other}
            assert db.verify(replace(receipt, **changed), public), name


def test_models_and_stores_name_each_other(root: Path, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "run" / "lineage" / "chain.jsonl")
    for step in (0, 100, 100, 200):
        chain.append(link(step))
    links = [each.hash for each in chain.links()]
    with Database(LocalStorage(root), background=False) as db:
        versions = [db.link_model(tmp_path / "run"), db.link_model(chain, step=100)]
        expected = [
            [{"link": links[3], "kind": "model", "step": 200, "number": 4}],
            [{"link": links[2], "kind": "model", "step": 100, "number": 3}],
        ]
        chain.append(replace(link(300), parents=(db.link(),)))
        with pytest.raises(InputError, match=r"no link of step 7; its steps: 0, 100, 200"):
            db.link_model(chain, step=7)
        with pytest.raises(InputError, match="has no chain"):
            db.link_model(root)
        db.seal()
    assert chain.breaks() == []
    with wdbx.open(root, mode="r") as db:
        said = {each["version"]: each["parents"] for each in db.log() if each["kind"] == "parents"}
        assert [said[version] for version in versions] == expected
        assert chain.links()[-1].parents == (db.link(versions[-1]),)
        assert db.verify() == []

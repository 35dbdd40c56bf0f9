"""Stores that an earlier build wrote (`tests/wdbx/stores`): this one reads all of them, and goes on writing them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.lineage_receipt import read_receipt
from abi_jax.wdbx.database import Database
from tests.wdbx.stores.make import HERE, KEY, SIGNER, plain

FOR_EVER = 1e9  # seconds

STORES = sorted(path for path in HERE.iterdir() if (path / "expected.json").exists())


@pytest.fixture(params=STORES, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, since even a reader writes its pin."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def options(folder: Path) -> dict[str, Any]:
    return {"key": KEY} if "encrypted" in folder.name else {}


def expected(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return said


def check(db: Database, said: dict[str, Any]) -> None:
    """Every row at every version that was noted, found by its id and by a search."""
    for version, collections in said["past"].items():
        views = db.views(int(version))
        assert set(views) == set(collections)
        for name, rows in collections.items():
            view = views[name]
            ids = [int(id_) for id_ in rows] if view.spec.ids == "int" else list(rows)
            assert len(view) == len(rows)
            for (vector, about, born), row in zip(rows.values(), view.get(ids), strict=True):
                assert row is not None and (row.vector.tolist(), row.born) == (vector, born)
                assert {field: plain(value) for field, value in row.metadata.items()} == about
            hits = view.search([[1, 1, 0]], top_k=len(rows) + 1)[0] if rows else []
            assert sorted(map(str, (hit.id for hit in hits))) == sorted(rows)


def test_there_are_some() -> None:
    assert {path.name for path in STORES} >= {"format-1-plain", "format-1-encrypted", "format-1-columns"}


def test_reads_all(folder: Path) -> None:
    said = expected(folder)
    with wdbx.open(folder / "store", mode="r", **options(folder)) as db:
        check(db, said)
        assert (db.link(), db.resolve("first")) == (said["link"], said["tag"])
        assert db.verify(read_receipt(folder / "receipt.json"), said["public_key"]) == []


def test_goes_on(folder: Path) -> None:
    said = expected(folder)
    signer: dict[str, Any] = {"sign_with": SIGNER} if "encrypted" in folder.name else {}
    with wdbx.open(folder / "store", retention=FOR_EVER, **options(folder), **signer) as db:
        db.collection("int8").delete([1])
        db.compact()
        check(db, said)
        assert db.verify(read_receipt(folder / "receipt.json")) == []


def test_proofs(folder: Path) -> None:
    """Proofs that were made then hold now."""
    receipt, said = read_receipt(folder / "receipt.json"), expected(folder)
    proofs = sorted(folder.glob("proof-*.json"))
    assert len(proofs) == (0 if "encrypted" in folder.name else 4)
    for path in proofs:
        shown = wdbx.check_proof(wdbx.read_proof(path), receipt, said["public_key"])
        at = max((version for version in said["past"] if int(version) <= shown.version), key=int)
        rows = said["past"][at][shown.collection]
        assert (None if shown.row is None else shown.row.vector.tolist()) == rows.get(str(shown.id), [None])[0]

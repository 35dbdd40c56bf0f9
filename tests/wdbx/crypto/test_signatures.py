"""Signed versions: verify knows who wrote each, whether or not it has the key of what is in them."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.lineage_receipt import new_key
from abi_jax.wdbx.log.file import LOG_HEAD, parse_log_head, scan
from abi_jax.wdbx.log.record import SIGNATURE_BYTES

KEY = bytes(range(32))


def write(path: Path, signer: Ed25519PrivateKey | Path | None, **options: Any) -> None:
    with wdbx.open(path, sign_with=signer, **options) as db:
        if "c" not in db.collections():
            db.create_collection("c", 2, metric="l2")
        db.collection("c").upsert(["a", "b"], [[1, 2], [3, 4]])
        db.seal()
        db.collection("c").upsert(["c"], [[5, 6]])
        db.tag("end")


@pytest.mark.parametrize("options", [{}, {"key": KEY}], ids=["plain", "encrypted"])
def test_a_signed_store(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "s"
    signer = new_key(tmp_path / "signer.pem")
    for signed_with in (signer, tmp_path / "signer.pem"):
        write(path, signed_with, **options)
        assert wdbx.verify(path) == []
        assert wdbx.verify(path, **options) == []
    with wdbx.open(path, mode="r", **options) as db:  # who reads needs no key to sign with
        assert len(db.collection("c")) == 3
        assert db.verify() == []


@pytest.mark.parametrize("place", ["key", "signature"])
def test_a_signature_that_was_changed_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "s"
    write(path, Ed25519PrivateKey.generate())
    log = max((path / "log").iterdir())
    data = log.read_bytes()
    head = parse_log_head(data)
    assert head is not None
    found = scan(head, data)
    for record, end in zip(found.records, found.ends, strict=True):
        at = end - SIGNATURE_BYTES + (3 if place == "key" else 40)
        log.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        said = [str(each) for each in wdbx.verify(path)]
        wrong = (
            "is signed with .*, which the store does not take" if place == "key" else "a signature that does not hold"
        )
        assert any(f"version {record.head.version}" in each for each in said), said
        assert any(re.search(wrong, each) for each in said), said
    log.write_bytes(data)
    assert wdbx.verify(path) == []


def test_a_chain_that_somebody_else_rewrote_is_found(tmp_path: Path) -> None:
    """Without a signature, the chain over a forged version is as good as any."""
    path = tmp_path / "s"
    write(path, Ed25519PrivateKey.generate())
    log = max((path / "log").iterdir())
    data = log.read_bytes()
    head = parse_log_head(data)
    assert head is not None
    records, link = scan(head, data).records, head.link
    forged = data[: LOG_HEAD.size]
    for record in records:
        changed = replace(record.head, time=record.head.time + 1).linked(link)
        link = changed.link
        forged += replace(record, head=changed).encode()
    log.write_bytes(forged)
    (path / "head").unlink()
    found = [each for each in wdbx.verify(path) if each.file != "head"]
    assert len(found) == len(records)
    assert all("a signature that does not hold" in each.wrong for each in found)


def test_the_signer_must_be_the_stores(tmp_path: Path) -> None:
    signer, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    write(tmp_path / "signed", signer)
    write(tmp_path / "plain", None)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(wdbx.NoKeyError, match="takes signed versions only; expected sign_with, the key of one of"):
        wdbx.open(tmp_path / "signed")
    with pytest.raises(wdbx.NoKeyError, match=r"does not take signatures of .*; expected one of"):
        wdbx.open(tmp_path / "signed", sign_with=other)
    with pytest.raises(wdbx.NoKeyError, match="expected no sign_with: a store takes signatures from its first"):
        wdbx.open(tmp_path / "plain", sign_with=other)
    with pytest.raises(InputError, match="sign_with of type bytes: expected an Ed25519 private key"):
        wdbx.open(tmp_path / "signed", sign_with=os.urandom(32))  # type: ignore[arg-type]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_signature_is_of_one_store(tmp_path: Path) -> None:
    """The same first version of two stores, of one signer: neither's record passes for the other's."""
    signer = Ed25519PrivateKey.generate()
    for name in ("a", "b"):
        with wdbx.open(tmp_path / name, sign_with=signer) as db:
            db.create_collection("c", 2)
    shutil.copyfile(tmp_path / "a" / "wdbx.json", tmp_path / "b" / "wdbx.json")
    assert wdbx.verify(tmp_path / "b") != []

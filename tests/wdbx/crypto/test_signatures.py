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
from abi_jax.wdbx.log.file import LOG_HEAD, LogHead, parse_log_head, scan
from abi_jax.wdbx.log.record import SIGNATURE_BYTES, Flag, Kind, Record, payload_digest
from abi_jax.wdbx.rows import encode_ids
from abi_jax.wdbx.spec import make_spec
from abi_jax.wdbx.witness import Witness, checked_json, read_checked, read_witness

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


def forge(path: Path, flags: int = 0, signature: bytes = b"", head: bool = True) -> None:
    """Adds a version as somebody does who has no key: it deletes `a`. head: says so in the file `head`, too."""
    log = max((path / "log").iterdir())
    data = log.read_bytes()
    found = scan(parse_log_head(data) or LogHead(bytes(16), 0, 0, bytes(32)), data)
    last = found.records[-1].head
    payload = encode_ids(make_spec("c", 2, "l2", "float32", "str", None), ["a"])
    said = replace(last, kind=Kind.DELETE, version=last.version + 1, collection=1, group=0, rows=1, flags=flags)
    said = replace(said, length=len(payload), digest=payload_digest(payload)).linked(last.link)
    log.write_bytes(data + Record(said, payload, signature).encode())
    if head:
        witness = read_witness("head", (path / "head").read_bytes())
        (path / "head").write_bytes(replace(witness, version=said.version, link=said.link.hex()).encode())


@pytest.mark.parametrize(
    ("flags", "signature", "wrong"),
    [
        (0, b"", "is not signed, in a store that takes signed versions only"),
        (Flag.SIGNED, bytes(SIGNATURE_BYTES), "the chain ends at version"),  # as a crash could have left it, but `head`
    ],
    ids=["not signed", "zeros"],
)
def test_a_forged_version_does_not_open(tmp_path: Path, flags: int, signature: bytes, wrong: str) -> None:
    path, signer = tmp_path / "s", Ed25519PrivateKey.generate()
    write(path, signer)
    forge(path, flags, signature)
    for options in ({"mode": "r"}, {"sign_with": signer}):
        with pytest.raises(wdbx.DamagedError, match=wrong):
            wdbx.open(path, **options)
    with wdbx.open(path, mode="r", damaged="ignore") as db:  # which shows what is signed
        assert db.collection("c").ids() == ["a", "b", "c"]
        assert "sign" in str(db.left_out[0])
    assert any("sign" in each.wrong for each in wdbx.verify(path))


def test_a_version_that_a_reader_has_not_seen_yet(tmp_path: Path) -> None:
    path, signer = tmp_path / "s", Ed25519PrivateKey.generate()
    write(path, signer)
    with wdbx.open(path, mode="r") as db:
        assert db.refresh() == db.version
        forge(path)
        with pytest.raises(wdbx.DamagedError, match="is not signed"):
            db.refresh()


def test_a_signature_that_a_crash_tore_off(tmp_path: Path) -> None:
    """Nobody was told of that version: it is cut off, as any other of which a part is missing."""
    path, signer = tmp_path / "s", Ed25519PrivateKey.generate()
    write(path, signer)
    with (path / "lock").open("a") as lock:
        lock.write("process 1\n")
    forge(path, Flag.SIGNED, bytes(SIGNATURE_BYTES), head=False)
    closed = read_witness("head", (path / "head").read_bytes())
    (path / "head").write_bytes(replace(closed, closed=False).encode())
    with wdbx.open(path, mode="r") as db:
        version = db.version
    with wdbx.open(path, sign_with=signer) as db:
        assert db.version == version and db.collection("c").ids() == ["a", "b", "c"]
        db.collection("c").delete(["a"])
    assert wdbx.verify(path) == []


def test_a_forged_sealing_is_not_in_force(tmp_path: Path) -> None:
    """Logs that are taken away leave the head of the next one, which nobody signs."""
    path, signer = tmp_path / "s", Ed25519PrivateKey.generate()
    with wdbx.open(path, sign_with=signer) as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 2]])
        db.seal()
        sealed, version, link = db.sealed, db.version, db.link()
    for log in (path / "log").iterdir():
        log.unlink()
    assert sealed.manifest is not None
    at, digest = sealed.manifest.version, sealed.digest
    head = LogHead(bytes.fromhex(sealed.manifest.store), 9, at + 1, bytes.fromhex(sealed.manifest.link), at, digest)
    (path / "log" / head.name).write_bytes(head.encode())
    (path / "head").write_bytes(Witness(at, sealed.manifest.link, 9, closed=True).encode())
    assert (version, link) != (at, sealed.manifest.link)
    for options in ({"mode": "r"}, {"sign_with": signer}, {"mode": "r", "damaged": "ignore"}):
        with pytest.raises(wdbx.DamagedError, match="no signed version puts it in force"):
            wdbx.open(path, **options)
    assert any("no signed version puts it in force" in each.wrong for each in wdbx.verify(path))


def test_history_that_was_never_signed(tmp_path: Path) -> None:
    """As a store that was made to take signatures has it from a build that sealed what nobody had signed."""
    path = tmp_path / "s"
    write(path, None)
    with wdbx.open(path) as db:
        db.compact()
    said = read_checked("wdbx store", "it", (path / "wdbx.json").read_bytes())
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    (path / "wdbx.json").write_bytes(checked_json("wdbx store", said | {"public_keys": [public]}))
    found = [each for each in wdbx.verify(path) if each.file.startswith("history")]
    assert found and all(each.wrong == "was not signed, in a store that takes signed versions only" for each in found)

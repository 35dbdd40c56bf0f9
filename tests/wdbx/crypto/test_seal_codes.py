"""What is sealed cannot be told otherwise by somebody who has all files and no key: an import is there or not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.master import LocalKey
from abi_jax.wdbx.crypto.seal_codes import FIELD, with_code, wrong_codes
from abi_jax.wdbx.log.file import LogHead, parse_log_head, scan
from abi_jax.wdbx.log.record import GENESIS, Flag, Head, Kind, Record, payload_digest
from abi_jax.wdbx.manifest import manifest_name
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.witness import Witness, read_witness
from tests.wdbx.stores import make

KEY = bytes(range(32))
Said = dict[str, Any]


def rewrite(path: Path, sealing: Callable[[Said], Said], link: bytes = GENESIS) -> None:
    """Makes records of sealings say something else, and all links, hashes and `head` anew, as anybody can.

    link: before the first version.
    """
    for log in sorted((path / "log").iterdir()):
        data = log.read_bytes()
        head = parse_log_head(data)
        assert head is not None
        link = head.link if link == GENESIS else link
        made = replace(head, link=link).encode()
        for record in scan(head, data).records:
            said, payload = record.head, record.payload
            if said.kind is Kind.SEAL:
                payload = canonical(sealing(json.loads(payload)))
                said = replace(said, length=len(payload), digest=payload_digest(payload))
            said = said.linked(link)
            link = said.link
            made += Record(said, payload, record.signature).encode()
        log.write_bytes(made)
    witness = read_witness("head", (path / "head").read_bytes())
    (path / "head").write_bytes(replace(witness, link=link.hex()).encode())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows in a segment, then of an import, then in the log alone."""
    with wdbx.open(tmp_path / "s", key=KEY, indexes=False) as db:
        c = db.create_collection("c", 2)
        c.upsert(["before"], [[1, 0]])
        db.seal()
        c.import_({"id": ["brought"], "vector": [[1, 1]]})
        c.upsert(["after"], [[0, 1]])
    return tmp_path / "s"


@pytest.mark.parametrize("code", ["kept", "taken away"])
def test_an_import_cannot_be_taken_out(path: Path, code: str) -> None:
    def without(said: Said) -> Said:
        if said["why"] == "import":
            now = path / manifest_name(said["version"], bytes.fromhex(said["hash"]))
            version, digest = json.loads(now.read_bytes())["previous"]
            gone = json.loads(now.read_bytes())["segments"].keys()
            kept = json.loads((path / manifest_name(version, bytes.fromhex(digest))).read_bytes())["segments"].keys()
            now.unlink()
            for number in gone - kept:
                shutil.rmtree(path / "segments" / f"{int(number):08d}")
            said |= {"version": version, "hash": digest}
        return said if code == "kept" else {name: value for name, value in said.items() if name != FIELD}

    rewrite(path, without)
    wrong = "nobody with the key wrote so" if code == "kept" else "without the code of somebody who has the key"
    for mode in ("r", "a"):
        with pytest.raises(wdbx.DamagedError, match=wrong):
            wdbx.open(path, mode, key=KEY)
    assert any(wrong in each.wrong for each in wdbx.verify(path, key=KEY))
    assert wdbx.verify(path) == []  # which cannot know
    with wdbx.open(path, "r", key=KEY, damaged="ignore") as db:
        assert any(wrong in each.wrong for each in db.left_out)
        assert db.collection("c").ids() == ["before"]


def test_links_alone_that_are_others(path: Path) -> None:
    """The code binds all that was before."""
    rewrite(path, lambda said: said)
    assert wdbx.verify(path, key=KEY) == []
    rewrite(path, lambda said: said, link=bytes(31) + b"\1")
    assert any("nobody with the key wrote so" in each.wrong for each in wdbx.verify(path, key=KEY))


def test_a_sealing_that_no_log_has(path: Path) -> None:
    """The head of a log has no code: it puts nothing in force by itself."""
    with wdbx.open(path, "r", key=KEY) as db:
        assert db.sealed.manifest is not None
        at, digest, link, store = db.sealed.manifest.version, db.sealed.digest, db.sealed.manifest.link, db.store
    shutil.rmtree(path / "log")
    (path / "log").mkdir()
    head = LogHead(store, 9, at + 1, bytes.fromhex(link), at, digest)
    (path / "log" / head.name).write_bytes(head.encode())
    (path / "head").write_bytes(Witness(at, link, 9, closed=True).encode())
    with pytest.raises(wdbx.DamagedError, match="is sealed, but the version that did so is in no log"):
        wdbx.open(path, "r", key=KEY)
    assert any("is in no log" in each.wrong for each in wdbx.verify(path, key=KEY))


def test_what_a_code_binds(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.make()
    ring = Keyring.create(storage, bytes(16), LocalKey(KEY))
    head = Head(Kind.SEAL, 7, 1_000, 2, 3, 4, 0, bytes(32))
    said = {"version": 5, "hash": "ab", "why": "import"}
    head, payload = with_code(ring, head, canonical(said), GENESIS)
    record = Record(head, payload)
    assert head.length == len(payload) and json.loads(payload).keys() == {*said, FIELD}

    def wrong(record: Record, previous: bytes = GENESIS, keyed: int | None = 1) -> bool:
        return bool(list(wrong_codes(ring, [(record, previous)], keyed)))

    assert not wrong(record) and not wrong(record, keyed=None)
    changes: dict[str, Any] = {"version": 8, "time": 1_001, "epoch": 3, "collection": 4, "rows": 5, "group": 1}
    for name, value in (changes | {"flags": Flag.SIGNED, "data_key": 1}).items():
        assert wrong(replace(record, head=replace(head, **{name: value}))), name
    assert wrong(record, previous=bytes(31) + b"\1")
    assert wrong(replace(record, payload=payload.replace(b"ab", b"ac")))
    bare = replace(record, payload=canonical(said))
    assert wrong(bare) and wrong(bare, keyed=7) and not wrong(bare, keyed=8) and not wrong(bare, keyed=None)


def test_a_store_from_before_there_were_codes(tmp_path: Path) -> None:
    """It opens as it is; what is sealed from here on has a code, and must have."""
    path = Path(shutil.copytree(make.HERE / "format-1-encrypted" / "store", tmp_path / "s"))
    with wdbx.open(path, "r", key=make.KEY) as db:
        assert db.sealed.manifest is not None and db.sealed.manifest.keyed is None
    with wdbx.open(path, key=make.KEY, sign_with=make.SIGNER) as db:
        before = db.version
        db.seal()
        db.compact()
        assert db.sealed.manifest is not None and db.sealed.manifest.keyed == before + 1
        assert db.verify() == []
    with wdbx.open(path, "r", key=make.KEY) as db:
        assert db.verify() == []


def test_a_plain_store_has_none(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "s") as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 0]])
        db.seal()
        assert db.sealed.manifest is not None and db.sealed.manifest.keyed is None
    assert all(FIELD.encode() not in log.read_bytes() for log in (tmp_path / "s" / "log").iterdir())

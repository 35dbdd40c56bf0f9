"""A proof shows what a store has of an id, or that it has nothing; whatever is changed in it is refused."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.lineage_receipt import Receipt, new_key
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.proof.form import DOMAIN
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.witness import checked_json

SCHEMA = {"lang": str, "year": int, "when": "time", "raw": "bytes", "tags": "list[str]", "sizes": "list[int]"}
IDS = ["a", "b", "doc-007", "doc-069", "ü", "gone", "old", "new", "imported", "nobody", "zz"]


@dataclass
class Made:
    """A store and what it held of every id at every version."""

    db: Database
    past: dict[int, dict[str, list[float]]]
    receipt: Receipt

    def holds(self, version: int, id_: str) -> list[float] | None:
        return self.past[max(v for v in self.past if v <= version)].get(id_)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Segments with deaths, an import, and versions behind them that only the log holds."""
    root = tmp_path_factory.mktemp("proof") / "store"
    now: dict[str, list[float]] = {}
    past: dict[int, dict[str, list[float]]] = {}
    with Database(LocalStorage(root), background=False) as db:
        c = db.create_collection("c", 2, "l2", schema=SCHEMA)
        past[db.version] = {}

        def upsert(ids: list[str], vector: list[float]) -> None:
            about = {"lang": "de", "year": 1999, "when": datetime(2020, 1, 2, tzinfo=UTC), "raw": b"\0x"}
            c.upsert(ids, [vector] * len(ids), [about | {"tags": ["ü", ""], "sizes": [1, -2]} for _ in ids])
            now.update(dict.fromkeys(ids, vector))
            past[db.version] = dict(now)

        def delete(ids: list[str]) -> None:
            c.delete(ids)
            for each in ids:
                now.pop(each, None)
            past[db.version] = dict(now)

        upsert([f"doc-{i:03}" for i in range(70)] + ["gone", "old"], [1, 2])
        db.seal()
        delete(["gone"])
        upsert(["a", "old"], [3, 4])
        db.seal()
        upsert(["ü"], [5, 6])
        c.import_({"id": ["imported", "b"], "vector": np.array([[7, 8], [7, 8]], np.float32)}, progress=False)
        now.update({"imported": [7, 8], "b": [7, 8]})
        past[db.version] = dict(now)
        delete(["doc-007"])
        upsert(["new", "b"], [9, 9])
        db.create_collection("other", 3)
        yield Made(db, past, db.receipt())


def test_every_id_at_every_version(made: Made) -> None:
    """What is proved is what was written, with nothing but the last link."""
    c, link = made.db.collection("c"), made.db.link()
    for version in range(min(made.past), made.db.version + 1):
        for id_ in IDS:
            shown = wdbx.check_proof(c.prove(id_, at=version), link)
            assert (shown.collection, shown.id, shown.version, shown.end) == ("c", id_, version, made.db.version)
            expected = made.holds(version, id_)
            assert (None if shown.row is None else shown.row.vector.tolist()) == expected, (id_, version)
            if shown.row is not None:
                (row,) = c.get([id_], at=version)
                assert row is not None and (row.metadata, row.born) == (shown.row.metadata, shown.row.born)


def test_up_to_a_receipt(made: Made, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    public = key.public_key().public_bytes_raw().hex()
    c = made.db.collection("c")
    receipt = made.db.receipt(sign_with=key)
    (tmp_path / "proof.json").write_text(c.prove("a", to=receipt).text())
    assert wdbx.check_proof(wdbx.read_proof(tmp_path / "proof.json"), receipt, public).row is not None
    proof = c.prove("a", at=2, to=receipt)
    assert wdbx.check_proof(proof, receipt).row is None
    early = made.db.receipt(at=2)
    with pytest.raises(InputError, match="the receipt is of version 2, and what is sealed was sealed at version"):
        c.prove("a", at=2, to=early)
    with pytest.raises(wdbx.ProofError, match=r"the receipt is of 2: make it with to=receipt"):
        wdbx.check_proof(proof, early)
    with pytest.raises(wdbx.ProofError, match="signed with no key"):
        wdbx.check_proof(proof, made.receipt, public)
    with pytest.raises(wdbx.ProofError, match=f"leads to {made.db.link()[:12]}, and not to 000000000000"):
        wdbx.check_proof(proof, "0" * 64)


def test_what_is_small(made: Made) -> None:
    """Just sealed, a proof has a path, the manifest and one link, however many rows there are."""
    assert len(made.db.collection("c").prove("doc-069", at=2).text()) < 16_000


def places(said: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value that is no container, or a container."""
    inside = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else []
    return [path, *(place for key, each in inside for place in places(each, (*path, key)))]


def change(data: st.DataObject, value: Any) -> Any:
    """Another value that could stand there."""
    if isinstance(value, str):
        at = data.draw(st.integers(0, max(len(value) - 1, 0)))
        letter = data.draw(st.sampled_from("A0aZ9b/+{1"))
        return data.draw(st.sampled_from([value[:at] + letter + value[at + 1 :], value[:at], value + letter, ""]))
    if isinstance(value, int):
        return value + data.draw(st.sampled_from([-1, 1, 64, 2**40]))
    if isinstance(value, dict):
        key = data.draw(st.sampled_from([*value, "1"]))
        taken = data.draw(st.sampled_from([*value.values(), [], {}, ""]))
        return {k: v for k, v in value.items() if k != key} if data.draw(st.booleans()) else value | {key: taken}
    return data.draw(st.sampled_from([value[1:], value[:-1], value + value[:1], value[::-1]]))


def changed(said: Any, path: tuple[Any, ...], data: st.DataObject) -> Any:
    if not path:
        return change(data, said)
    copy = dict(said) if isinstance(said, dict) else list(said)
    copy[path[0]] = changed(said[path[0]], path[1:], data)
    return copy


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), id_=st.sampled_from(IDS), again=st.booleans())
def test_whatever_is_changed(made: Made, data: st.DataObject, id_: str, again: bool) -> None:
    """Refused; where the forger makes the proof's own hash again, refused, too, or what is shown is true."""
    version = data.draw(st.sampled_from(sorted(made.past)))
    text = PROOFS.setdefault((id_, version), made.db.collection("c").prove(id_, at=version).text())
    said = json.loads(text)
    other = changed(said, data.draw(st.sampled_from(places(said)[1:])), data)
    if other == said:
        return
    if again:
        other.pop("check", None)
        forged = checked_json(DOMAIN, other).decode()
    else:
        forged = json.dumps(other)
    try:
        shown = wdbx.check_proof(forged, made.receipt)
    except wdbx.ProofError:
        return
    assert again and shown.collection == "c" and isinstance(shown.id, str)
    assert shown.end == made.db.version
    row = None if shown.row is None else shown.row.vector.tolist()
    assert row == made.holds(shown.version, shown.id)


PROOFS: dict[tuple[str, int], str] = {}


def test_an_older_manifest_shows_no_absence(tmp_path: Path) -> None:
    """A manifest from before an import knows nothing of its rows: with it, they seem not to be there."""
    with Database(LocalStorage(tmp_path / "store"), background=False) as db:
        c = db.create_collection("c", 2, "l2", ids="int")
        c.upsert([1, 5], [[1, 1], [5, 5]])
        db.seal()
        before = c.prove(3)
        assert wdbx.check_proof(before, db.link()).row is None
        c.import_({"id": np.array([3]), "vector": np.array([[3, 3]], np.float32)}, progress=False)
        after = c.prove(3)
        assert wdbx.check_proof(after, db.link()).row is not None
        forged = wdbx.Proof(
            before.collection, 3, db.version, before.manifest, before.seal, before.heads + after.heads[-128:],
            {}, before.segments, before.deaths,
        )  # fmt: skip
        with pytest.raises(wdbx.ProofError, match="not the last that was sealed"):
            wdbx.check_proof(forged, db.link())


def test_bad_questions(made: Made) -> None:
    c = made.db.collection("c")
    with pytest.raises(InputError, match="has ids of type str"):
        c.prove(3)
    with pytest.raises(InputError, match="was not there at version 0"):
        c.prove("a", at=0)
    with pytest.raises(wdbx.ProofError, match="damaged, or not a proof"):
        wdbx.check_proof("{}", made.receipt)

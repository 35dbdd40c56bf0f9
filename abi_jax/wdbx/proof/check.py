"""Checking a proof: with nothing but the proof, and a receipt or a link that is trusted."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from abi_jax.errors import InputError
from abi_jax.lineage_receipt import Receipt, signature_findings
from abi_jax.wdbx.digest import Path
from abi_jax.wdbx.errors import ProofError
from abi_jax.wdbx.log.record import GENESIS, HEAD, Head, Kind, parse_head, payload_digest
from abi_jax.wdbx.manifest import CollectionEntry, Manifest, SegmentEntry, manifest_hash, parse_manifest
from abi_jax.wdbx.proof.form import Leaf, Proof, parse_proof
from abi_jax.wdbx.proof.make import DEATHS_FILE
from abi_jax.wdbx.proof.message import MessageRow, read_message
from abi_jax.wdbx.proof.replay import State, brings, replay, tells
from abi_jax.wdbx.receipt import KIND
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.view import Row


@dataclass(frozen=True)
class Proven:
    """What a proof shows: at `version`, the collection had this row of the id, or (None) no row of it.

    end: the version of the receipt, or of the link; time: when that was written.
    """

    collection: str
    id: str | int
    version: int
    row: Row | None
    end: int
    time: datetime


def check_proof(proof: Proof | str, trusted: Receipt | str, public_key: str = "") -> Proven:
    """What `proof` shows, if `trusted` is right. Raises `ProofError` where it does not show it.

    proof: or its JSON. trusted: the receipt that the proof was made up to, or the link of that version. public_key,
    hexadecimal: who must have signed the receipt.
    """
    checked = parse_proof(proof if isinstance(proof, str) else proof.text())
    try:
        return _Check(checked).proven(trusted, public_key)
    except ProofError:
        raise
    except (InputError, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise ProofError(f"the proof does not hold: {error}") from None
    except Exception as error:  # of Arrow's, for bytes that are no record batch
        if type(error).__module__.split(".")[0] != "pyarrow":
            raise
        raise ProofError(f"the proof does not hold: {error}") from None


def _require(right: bool, wrong: str) -> None:
    if not right:
        raise ProofError(f"the proof does not hold: {wrong}")


class _Check:
    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        self.manifest: Manifest | None = None
        self.heads: list[Head] = []

    def proven(self, trusted: Receipt | str, public_key: str) -> Proven:
        """Follows the chain back from what is trusted, then reads what the chain stands for."""
        proof = self.proof
        if proof.manifest:
            self.manifest = parse_manifest("its manifest", proof.manifest.encode())
            _require(self.manifest.encode(None).decode() == proof.manifest, "its manifest is not as it is written")
        self._chain(trusted, public_key)
        self._in_force()
        last = self.heads[-1]
        _require(proof.version <= last.version, f"it ends at version {last.version}, before version {proof.version}")
        entry = self.manifest.collections.get(proof.collection) if self.manifest else None
        if entry is not None:
            _require(entry.created <= proof.version, "the collection was made later")
            _require(not entry.dropped or proof.version < entry.dropped, "the collection was dropped")
            _require(entry.horizon <= proof.version, f"versions before {entry.horizon} are no longer kept")
        state = replay(State(entry.spec if entry else None), proof.id, self._records())
        _require(state.spec is not None, "there is no such collection then")
        assert state.spec is not None
        _require(
            isinstance(proof.id, str) == (state.spec.ids == "str"), f"the collection has ids of type {state.spec.ids}"
        )
        row = state.row
        imported = any(brings(each, proof.collection) for each in self.heads if each.version <= proof.version)
        if state.touched and not imported:
            _require(not proof.segments and not proof.deaths, "it shows segments that tell nothing")
        else:
            _require(entry is not None and self.manifest is not None, "it shows no segments")
            assert entry is not None and self.manifest is not None
            row = _Sealed(proof, self.manifest, entry, state.touched).row(proof.version) or row
        time = datetime.fromtimestamp(last.time / 1e6, UTC)
        return Proven(state.spec.name, proof.id, proof.version, row, last.version, time)

    def _chain(self, trusted: Receipt | str, public_key: str) -> None:
        data = self.proof.heads
        _require(len(data) > 0 and len(data) % HEAD.size == 0, "its heads are not whole")
        link = GENESIS if self.manifest is None else bytes.fromhex(self.manifest.link)
        version = 0 if self.manifest is None else self.manifest.version
        for at in range(0, len(data), HEAD.size):
            head = parse_head(data[at : at + HEAD.size])
            version += 1
            whole = head is not None and head.encode() == data[at : at + HEAD.size]
            _require(whole and head is not None and head.version == version, f"it has no version {version}")
            assert head is not None
            _require(head.link == head.link_after(link), f"the link of version {version} does not follow")
            link = head.link
            self.heads.append(head)
        if isinstance(trusted, Receipt):
            _require(trusted.kind == KIND, f"the receipt is of a {trusted.kind}, not of a WDBX store")
            for wrong in signature_findings(trusted, public_key):
                _require(False, f"the receipt: {wrong}")
            said = f"it ends at version {version}, the receipt is of {trusted.number}"
            _require(trusted.number == version, f"{said}: make it with to=receipt")
        expected = trusted.head if isinstance(trusted, Receipt) else trusted
        _require(link.hex() == expected, f"it leads to {link.hex()[:12]}, and not to {str(expected)[:12]}")

    def _in_force(self) -> None:
        """The manifest must be the one that a version of the chain put in force."""
        proof = self.proof
        if self.manifest is None:
            _require(not proof.seal, "it shows the sealing of no manifest")
            return
        digest = payload_digest(proof.seal)
        sealing = [head for head in self.heads if head.kind is Kind.SEAL]
        _require(bool(sealing) and sealing[-1].digest == digest, "its manifest is not the last that was sealed")
        said = json.loads(proof.seal)
        hashed = manifest_hash(proof.manifest.encode()).hex()
        right = (said["version"], said["hash"]) == (self.manifest.version, hashed)
        _require(right, "its manifest is not the one that was sealed")

    def _records(self) -> list[tuple[Head, bytes]]:
        proof = self.proof
        heads = [each for each in self.heads if tells(each, proof.collection) and each.version <= proof.version]
        _require([each.version for each in heads] == sorted(proof.records), "versions are missing that changed rows")
        for each in heads:
            right = payload_digest(proof.records[each.version]) == each.digest
            _require(right, f"what version {each.version} did is not what it shows")
        return [(each, proof.records[each.version]) for each in heads]


class _Sealed:
    """What the segments of a manifest show of an id."""

    def __init__(self, proof: Proof, manifest: Manifest, collection: CollectionEntry, touched: int) -> None:
        """touched: the version behind the manifest's that had or deleted the id; rows that are older died then."""
        self.proof = proof
        self.touched = touched
        self.spec: CollectionSpec = collection.spec
        steps = manifest.segments.items()
        self.steps = {number: step for number, step in steps if step.collection == proof.collection}
        self.died = self._deaths()

    def row(self, version: int) -> Row | None:
        """The row that is alive at `version`; None where all segments show that there is none."""
        shown = self.proof.segments
        if len(shown) == 1:
            ((number, leaves),) = shown.items()
            step = self._step(number)
            if len(leaves) == 1:
                found = self._read(number, step, leaves[0])
                born = step.first + found.since
                if found.id == self.proof.id and self._alive(number, leaves[0].row, born, version):
                    return Row(found.id, found.vector, found.metadata, born)
        with_rows = {number for number, step in self.steps.items() if step.rows}
        _require(set(shown) == with_rows, "it does not show all segments, which it must for an id that is not there")
        for number, leaves in shown.items():
            self._absent(number, leaves, version)
        return None

    def _absent(self, number: int, leaves: tuple[Leaf, ...], version: int) -> None:
        """All rows of the id, and one on each side of them; no row of the id may be alive."""
        step, rows = self._step(number), [leaf.row for leaf in leaves]
        said = f"segment {number} may have the id in rows that are not shown"
        _require(len(rows) > 0 and rows == list(range(rows[0], rows[0] + len(rows))), said)
        read = [self._read(number, step, leaf) for leaf in leaves]
        wanted = _order(self.proof.id)
        places = [(_order(each.id) > wanted) - (_order(each.id) < wanted) for each in read]
        _require(places == sorted(places) and places.count(-1) <= 1 and places.count(1) <= 1, said)
        _require((places[0] == -1 or rows[0] == 0) and (places[-1] == 1 or rows[-1] == step.rows - 1), said)
        for leaf, each, place in zip(leaves, read, places, strict=True):
            alive = place == 0 and self._alive(number, leaf.row, step.first + each.since, version)
            _require(not alive, f"row {leaf.row} of segment {number} has the id, among others that are shown")

    def _step(self, number: int) -> SegmentEntry:
        _require(number in self.steps and self.steps[number].rows > 0, f"the collection has no segment {number}")
        return self.steps[number]

    def _read(self, number: int, step: SegmentEntry, leaf: Leaf) -> MessageRow:
        _require(leaf.row < step.rows, f"segment {number} has {step.rows} rows, and no row {leaf.row}")
        root = Path(leaf.row, step.rows, step.first, leaf.beside).root(hashlib.sha256(leaf.message).digest())
        _require(root is not None and root.hex() == step.content, f"row {leaf.row} is not in segment {number}")
        return read_message(step.spec(self.spec), leaf.message)

    def _alive(self, number: int, row: int, born: int, version: int) -> bool:
        return self.touched < born <= version < self.died.get((number, row), version + 1)

    def _deaths(self) -> dict[tuple[int, int], int]:
        telling = {number for number, step in self.steps.items() if step.deaths}
        _require(set(self.proof.deaths) == telling, "it does not show all deaths")
        found: dict[tuple[int, int], int] = {}
        for number, data in self.proof.deaths.items():
            step = self.steps[number]
            right = hashlib.sha256(data).hexdigest() == step.files.get(DEATHS_FILE)
            _require(right and len(data) == 24 * step.deaths, f"the deaths that segment {number} tells are others")
            for segment, row, version in np.frombuffer(data, "<u8").reshape(-1, 3).tolist():
                died = version or step.last
                found[segment, row] = min(died, found.get((segment, row), died))
        return found


def _order(id_: str | int) -> tuple[bool, bytes | int]:
    return (True, id_.encode()) if isinstance(id_, str) else (False, id_)

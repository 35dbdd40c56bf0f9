"""Making a proof from an open store."""

from typing import TYPE_CHECKING

from abi_jax.errors import InputError
from abi_jax.lineage_receipt import Receipt
from abi_jax.wdbx.digest import tree_levels, tree_path
from abi_jax.wdbx.errors import DamagedError, WdbxError
from abi_jax.wdbx.load import read_logs, step_name
from abi_jax.wdbx.log.record import Kind, Record
from abi_jax.wdbx.manifest import Manifest, Sealed
from abi_jax.wdbx.proof.form import Leaf, Proof
from abi_jax.wdbx.proof.replay import State, brings, replay, tells
from abi_jax.wdbx.rows import make_ids
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.segment_digest import segment_digests, segment_messages
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.view import View

if TYPE_CHECKING:
    from abi_jax.wdbx.database import Database

DEATHS_FILE = "deaths/0.0"  # of a step: the array's one chunk, which is its memory


def prove(database: "Database", number: int, id_: str | int, version: int, to: Receipt | None = None) -> Proof:
    """Proves what collection `number` has of an id at `version`, up to the last version, or to that of a receipt.

    Call it while nothing is sealed. Raises `InputError` where the receipt was made before what is sealed was.
    """
    view = database.view(number, version)
    wanted = make_ids(view.spec, [id_])[0]
    id_ = wanted if isinstance(wanted, str) else int(wanted)
    sealed, end = database.sealed, database.version if to is None else to.number
    first = sealed.manifest.version if sealed.manifest else 0
    records = _records(database, first)
    _check_end(database, sealed, records, version, end, to)
    behind = [each for each in records if each.head.version <= end]
    telling = [each for each in behind if tells(each.head, number) and each.head.version <= version]
    known = sealed.manifest.collections.get(number) if sealed.manifest else None
    state = replay(State(known.spec if known else None), id_, ((each.head, each.payload) for each in telling))
    segments: dict[int, tuple[Leaf, ...]] = {}
    deaths: dict[int, bytes] = {}
    imported = any(brings(each.head, number) for each in behind if each.head.version <= version)
    if sealed.manifest is not None and known is not None and (imported or not state.touched):
        segments = _segments(view, id_, version)
        deaths = _deaths(database.storage, sealed.manifest, number)
    return Proof(
        number,
        id_,
        version,
        "" if sealed.manifest is None else sealed.manifest.encode(None).decode(),
        next((each.payload for each in behind if _puts_in_force(each, sealed)), b""),
        b"".join(each.head.encode() for each in behind),
        {each.head.version: each.payload for each in telling},
        segments,
        deaths,
    )


def _records(database: "Database", first: int) -> list[Record]:
    """Everything behind version `first`, from the log."""
    made = [each for each in read_logs(database.storage, database.store).records if each.head.version > first]
    if [each.head.version for each in made[: database.version - first]] != [*range(first + 1, database.version + 1)]:
        raise DamagedError(f"{database.storage}: versions behind {first} are in no log file")
    return made[: database.version - first]


def _puts_in_force(record: Record, sealed: Sealed) -> bool:
    return record.head.kind is Kind.SEAL and sealed.digest.hex().encode() in record.payload


def _check_end(
    database: "Database", sealed: Sealed, records: list[Record], version: int, end: int, to: Receipt | None
) -> None:
    if database.storage.ring is not None:
        raise WdbxError(f"{database.storage} is encrypted; proofs are of stores that are not")
    begin = next((each.head.version for each in records if _puts_in_force(each, sealed)), 0)
    if to is None:
        return
    if end > database.version or database.link(end) != to.head:
        raise InputError(f"the receipt is of version {end}, which {database.storage} does not have as it says")
    if end < max(version, begin):
        why = "what is sealed was sealed" if begin > version else "the proof is of what was written"
        raise InputError(
            f"the receipt is of version {end}, and {why} at version {max(version, begin)}; expected a later receipt"
        )


def _segments(view: View, id_: str | int, version: int) -> dict[int, tuple[Leaf, ...]]:
    """The row of the id where there is one; else, of every segment, all rows of the id and those beside them."""
    for segment in view.segments:
        row = int(segment.find([id_], version)[0])
        if row >= 0:
            return {segment.number: _leaves(segment, range(row, row + 1))}
    return {each.number: _leaves(each, _around(each, id_)) for each in view.segments}


def _around(segment: Segment, id_: str | int) -> range:
    run = segment.ids.run(id_)
    return range(max(run.start - 1, 0), min(run.stop + 1, len(segment)))


def _leaves(segment: Segment, rows: range) -> tuple[Leaf, ...]:
    levels = tree_levels(segment_digests(segment))
    messages = segment_messages(segment, rows.start, rows.stop).joined()
    paths = [tree_path(levels, row, segment.first).beside for row in rows]
    return tuple(Leaf(*each) for each in zip(rows, messages, paths, strict=True))


def _deaths(storage: Storage, manifest: Manifest, number: int) -> dict[int, bytes]:
    """Deaths of the collection's rows, by the segment whose step tells them."""
    found: dict[int, bytes] = {}
    for step, entry in manifest.segments.items():
        if entry.collection == number and entry.deaths:
            data = storage.read(f"{step_name(step)}/{DEATHS_FILE}")
            if data is None:
                raise DamagedError(f"{storage}/{step_name(step)}/{DEATHS_FILE} is missing")
            found[step] = data
    return found

"""Reading a store from its files: the newest manifest in force, then every log behind it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import sleep
from typing import Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.contents import Collection, Contents, RowSet
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.master import KeySource, read_master
from abi_jax.wdbx.crypto.records import open_record
from abi_jax.wdbx.crypto.seal_codes import wrong_codes
from abi_jax.wdbx.errors import DamagedError, NoKeyError, WdbxError
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.log.file import LogHead, Scan, parse_log_head, scan
from abi_jax.wdbx.log.order import Logs, in_order
from abi_jax.wdbx.log.record import Kind, Record
from abi_jax.wdbx.manifest import Manifest, SegmentEntry, check_format, manifest_hash, manifest_name, parse_manifest
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.signed import signed_logs
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.stored_lists import StoredLists
from abi_jax.wdbx.tail import Tail
from abi_jax.wdbx.witness import HEAD_FILE, checked_hash, read_checked, read_witness

STORE_FILE = "wdbx.json"
ENCRYPTION = "AES-256-GCM"
ATTEMPTS, WAIT_SECONDS = 5, 0.05


@dataclass(frozen=True)
class LeftOut:
    """What of a damaged store is not opened (`whole.py`).

    rows: segments without what they tell of deaths in others. collections: by number, the folder of the step at fault.
    """

    rows: frozenset[int] = frozenset()
    collections: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A store as it was found. newest: its last log file; behind `newest.end` there may be a torn record.

    erased: data keys that are to be taken away. left, findings: of a damaged store what is left out, and why.
    """

    store: bytes
    contents: Contents
    newest: Scan
    manifest: Manifest | None
    manifest_hash: bytes
    erased: frozenset[int] = frozenset()
    left: LeftOut = LeftOut()
    findings: tuple[Finding, ...] = ()


def load(storage: Storage, before: Loaded | None = None) -> Loaded:
    """Reads the store. Raises `InputError` where there is none, `DamagedError` where it is not as it was written.

    before: what was read last; segments that are there still are not opened again.
    """
    about = read_about(storage)
    store, since = bytes.fromhex(about["store"]), None if before is None else before.contents.link
    logs = signed_logs(storage, read_logs(storage, store), about["public_keys"], since)
    made = build(storage, store, logs, before)
    for version, wrong in wrong_sealings(storage, logs, made.manifest):
        raise DamagedError(f"{storage}: version {version} {wrong}; see abi wdbx verify")
    witness = storage.read(HEAD_FILE)
    if witness is not None:
        said = read_witness(f"{storage}/{HEAD_FILE}", witness)
        if said.version > made.contents.version:
            raise DamagedError(
                f"{storage}: the chain ends at version {made.contents.version}, and was at {said.version} before; "
                "see abi wdbx verify"
            )
    return made


def build(storage: Storage, store: bytes, logs: Logs, before: Loaded | None, left: LeftOut = LeftOut()) -> Loaded:
    """What logs that are whole, and the manifest in force, hold; see `load`."""
    newest, records = logs.newest, logs.records
    erased = erased_keys(storage.ring, records)
    version, digest = logs.manifest
    manifest = read_manifest(storage, version, digest, erased) if version else None
    contents = Contents() if manifest is None else open_sealed(storage, manifest, before, left)
    behind = [record for record in records if record.head.version > contents.version]
    if behind and behind[0].head.version != contents.version + 1:
        raise DamagedError(
            f"{storage}: versions {contents.version + 1} to {behind[0].head.version - 1} are in no log file"
        )
    for record in behind:
        if record.head.data_key in erased:
            contents.skip(record.head)
        else:
            contents.apply(open_record(storage.ring, record))
    if contents.link != newest.link and newest.next_version - 1 >= contents.version:
        raise DamagedError(f"{storage}: the logs do not go on from manifest {version}")
    return Loaded(store, contents, newest, manifest, digest, erased)


def load_while_written(storage: Storage, before: Loaded | None = None) -> Loaded:
    """Reads a store that another process writes to, and whose files may go while they are read."""
    for _ in range(ATTEMPTS):
        try:
            return load(storage, before)
        except DamagedError:
            sleep(WAIT_SECONDS)
    return load(storage, before)


def read_store(storage: Storage) -> bytes:
    """The 16 bytes that a store is known by."""
    return bytes.fromhex(read_about(storage)["store"])


def about_hash(storage: Storage) -> str:
    """The hash that `wdbx.json` carries, of what it says."""
    return checked_hash("wdbx store", read_about(storage))


def read_about(storage: Storage) -> dict[str, Any]:
    """What `wdbx.json` says."""
    data = storage.read(STORE_FILE)
    if data is None:
        raise InputError(f"{storage} is not a WDBX store: it has no {STORE_FILE}")
    said = read_checked("wdbx store", f"{storage}/{STORE_FILE}", data)
    check_format(said, f"{storage}/{STORE_FILE}")
    return said


def open_ring(storage: Storage, key: KeySource | None) -> None:
    """Gives a storage the data keys of its store. Raises `NoKeyError` where `key` does not open it, or is missing."""
    said = read_about(storage)
    if said["encryption"] is None:
        if key is not None:
            raise InputError(f"{storage} is not encrypted; expected no key")
        return
    if said["encryption"] != ENCRYPTION:
        raise WdbxError(f"{storage} is encrypted with {said['encryption']!r}; this abi-jax knows {ENCRYPTION!r}")
    if key is None:
        raise NoKeyError(f"{storage} is encrypted; expected its key: 32 bytes, a file, 'env:NAME' or a key service")
    try:
        storage.ring = Keyring.open(storage, bytes.fromhex(said["store"]), read_master(key))
    except NoKeyError as error:
        raise NoKeyError(f"{storage}: {error}") from None


def wrong_sealings(storage: Storage, logs: Logs, manifest: Manifest | None) -> Iterator[tuple[int, str]]:
    """Versions that say what is sealed and that nobody with the data keys wrote so, and why; none without these.

    manifest: the one in force, as it was opened with the keys.
    """
    if storage.ring is None or manifest is None:
        return
    if manifest.keyed is not None and logs.sealing is None:
        yield manifest.version, "is sealed, but the version that did so is in no log"
    for record, wrong in wrong_codes(storage.ring, logs.linked, manifest.keyed):
        yield record.head.version, wrong


def erased_keys(ring: Keyring | None, records: list[Record]) -> frozenset[int]:
    """Numbers of the data keys that records say are erased."""
    found: set[int] = set()
    for record in records if ring is not None else []:
        if record.head.kind is Kind.ERASE:
            found |= set(json.loads(open_record(ring, record).payload)["keys"])
    return frozenset(found)


def read_logs(storage: Storage, store: bytes) -> Logs:
    """All log files, and what of them counts. Raises `DamagedError` where one of them is not whole."""
    found = []
    for name in storage.names("log"):
        data = storage.read_log(f"log/{name}")
        head = parse_log_head(data or b"")
        if data is None or head is None or head.store != store or head.name != name:
            raise DamagedError(f"{storage}/log/{name} does not begin as a log of this store does")
        each = scan(head, data)
        if each.torn and not storage.tears:
            raise DamagedError(f"{storage}/log/{name}: version {each.next_version} is damaged; see abi wdbx verify")
        found.append(each)
    if not found:
        raise DamagedError(f"{storage}/log is empty; expected at least one log file")
    logs = in_order(found)
    try:
        logs.check()
    except DamagedError as error:
        raise DamagedError(f"{storage}: {error}; see abi wdbx verify") from None
    return logs


def read_manifest(storage: Storage, version: int, digest: bytes, erased: frozenset[int] = frozenset()) -> Manifest:
    """The manifest up to `version`, whose hash must be `digest`. erased: data keys."""
    name = manifest_name(version, digest)
    data = storage.read(name)
    if data is None:
        raise DamagedError(f"{storage}/{name} is missing")
    if manifest_hash(data) != digest:
        raise DamagedError(f"{storage}/{name} is not the one that was sealed")
    return parse_manifest(f"{storage}/{name}", data, storage.ring, erased)


def step_name(number: int) -> str:
    """The folder of a segment."""
    return f"segments/{number:08d}"


def open_sealed(
    storage: Storage, manifest: Manifest, before: Loaded | None = None, left: LeftOut = LeftOut()
) -> Contents:
    """What a manifest holds, with its segments mapped; those that `before` has are taken from it."""
    known = _opened(before)
    made = Contents()
    made.version, made.time, made.link = manifest.version, manifest.time, bytes.fromhex(manifest.link)
    made.tags = dict(manifest.tags)
    made.parents = {version: list(map(dict, links)) for version, links in manifest.parents.items()}
    for number, entry in manifest.collections.items():
        made.collections[number] = Collection(
            number,
            entry.spec,
            entry.created,
            RowSet((), Tail(entry.spec)),
            entry.horizon,
            entry.dropped,
            entry.erased,
            entry.retention,
        )
    deaths = [np.zeros((0, 3), np.int64)]
    for number, step in sorted(manifest.segments.items()):
        collection = made.collections[step.collection]
        if not collection.spec.known or step.collection in left.collections:
            continue  # erased since, or left out
        rows = 0 if number in left.rows else step.rows
        if not rows and not step.deaths:
            continue
        there = known.get(number) if rows else None
        same = there is not None and there[0] == step
        arrays = there[1].arrays if there is not None and same else storage.load(step_name(number), step.files)
        wanted = [name for name, count in (("deaths", step.deaths), ("vectors", rows)) if count]
        if missing := [name for name in wanted if name not in arrays]:
            raise DamagedError(f"{storage}/{step_name(number)} has no array {', '.join(missing)}; see abi wdbx verify")
        if step.deaths:
            told = np.array(arrays["deaths"], np.int64)
            told[told[:, 2] == 0, 2] = step.last
            deaths.append(told)
        if rows:
            if there is not None and same:
                segment = there[1].without_deaths().with_columns(collection.spec)
            else:
                segment = Segment(number, collection.spec, step.first, arrays)
            collection.rows = RowSet((*collection.segments, segment), collection.tail)
    segments = {segment.number: segment for each in made.collections.values() for segment in each.segments}
    for number, index in manifest.indexes.items():
        of = segments.get(index.segment)
        if of is not None and (of.stored_lists is None or of.stored_lists.number != number):
            of.stored_lists = StoredLists(storage, number, index.files, of.spec.metric, len(of))
    dead = np.concatenate(deaths)
    for segment in segments.values():
        own = dead[dead[:, 0] == segment.number]
        segment.die(own[:, 1], own[:, 2])
    return made


def _opened(before: Loaded | None) -> dict[int, tuple[SegmentEntry, Segment]]:
    """Segments that are open, with what a manifest says of each."""
    if before is None or before.manifest is None:
        return {}
    entries = before.manifest.segments
    segments = (segment for each in before.contents.collections.values() for segment in each.segments)
    return {segment.number: (entries[segment.number], segment) for segment in segments if segment.number in entries}


def first_log(store: bytes) -> LogHead:
    """The head of a new store's first log."""
    return LogHead(store, epoch=1, first=1, link=bytes(32))

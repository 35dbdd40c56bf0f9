"""What is whole of a store that is damaged, for whoever would rather read that than nothing.

docs/wdbx-format.md, "Damaged stores".
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from time import sleep

from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.pages import ABOUT
from abi_jax.wdbx.crypto.records import open_record
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.findings import Finding, wrong_file
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.load import (
    ATTEMPTS,
    WAIT_SECONDS,
    LeftOut,
    Loaded,
    build,
    load_while_written,
    read_about,
    read_manifest,
    step_name,
    wrong_sealings,
)
from abi_jax.wdbx.log.file import LOG_HEAD, LogHead, Scan, begun, parse_log_head, scan
from abi_jax.wdbx.log.order import Logs, in_order
from abi_jax.wdbx.log.record import GENESIS, Kind, Record
from abi_jax.wdbx.manifest import FOLDER as MANIFESTS
from abi_jax.wdbx.manifest import Manifest, SegmentEntry, manifest_hash, manifest_name, parse_manifest
from abi_jax.wdbx.signed import check_put_in_force, unsigned
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.witness import HEAD_FILE, read_witness

MODES = ("a", "r")
DAMAGED = ("refuse", "ignore")
UNKNOWN = b""  # the link that a log begins with whose head cannot be read


def check_mode(mode: str, damaged: str) -> None:
    """Raises `InputError` unless a store can be opened so."""
    if mode not in MODES:
        raise InputError(f"mode {mode!r}: expected 'a', to write, or 'r', to read")
    if damaged not in DAMAGED:
        raise InputError(f"damaged {damaged!r}: expected one of {', '.join(DAMAGED)}")
    if damaged == "ignore" and mode != "r":
        raise InputError(f"damaged='ignore' with mode {mode!r}: what is damaged can be read, mode 'r', not written to")


def load_for_reading(storage: Storage, before: Loaded | None, damaged: str) -> Loaded:
    """A store that others may write to meanwhile; with damaged="ignore", what is whole of it."""
    if damaged == "refuse":
        return load_while_written(storage, before)
    for _ in range(ATTEMPTS):  # a file that is missing may be one that another process has sealed
        names = storage.names("log")
        made = _load_whole(storage, before)
        if not made.findings or storage.names("log") == names:
            break
        sleep(WAIT_SECONDS)
    return made


def _load_whole(storage: Storage, before: Loaded | None) -> Loaded:
    """The last version up to which all logs are whole, without segments that are not.

    What is shown is true: rows of a segment that is damaged are not there, and nothing at all of a collection of which
    cannot be told which rows died. Raises `DamagedError` where nothing can be shown: not without `wdbx.json`, the
    manifest in force, or, encrypted, `keys.json`.
    """
    about = read_about(storage)
    store, public_keys = bytes.fromhex(about["store"]), about["public_keys"]
    logs, found = _whole_logs(storage, store, public_keys)
    check_put_in_force(storage, logs, public_keys)
    version, digest = logs.manifest
    manifest = read_manifest(storage, version, digest, frozenset(_erased(storage, logs))) if version else None
    left = LeftOut()
    if manifest is not None:
        left, more = _segments(storage, manifest, before)
        found += [*more, *_history(storage, manifest)]
    made = build(storage, store, logs, before, left)
    found += _witness(storage, made.contents.version)
    for number, folder in left.collections.items():
        made.contents.left_out[number] = str(next(each for each in found if each.file.startswith(f"{folder}/")))
    return replace(made, left=left, findings=tuple(found))


def _whole_logs(storage: Storage, store: bytes, public_keys: Collection[str]) -> tuple[Logs, list[Finding]]:
    """Logs up to the first version that is damaged and in no manifest, and what is wrong with them."""
    found, scans = [], []
    for name in storage.names("log"):
        data = storage.read_log(f"log/{name}") or b""
        head = parse_log_head(data)
        if head is not None and head.store == store and head.name == name:
            each = scan(head, data)
            broken = each.torn and not storage.tears
            scans.append(replace(each, damaged_version=each.next_version) if broken else each)
            continue
        epoch, first = begun(name)
        found.append(Finding(f"log/{name}", "versions", "does not begin as a log of this store does"))
        if epoch:  # versions of others count no more from there on, though these cannot be read
            scans.append(Scan(LogHead(store, epoch, first, UNKNOWN), [], [], len(data), first))
    logs = in_order(scans)
    while logs.scans and (wrong := min(_wrong(storage, logs, public_keys), key=lambda each: each[0], default=None)):
        version, finding = wrong
        found += [] if any(each.file == finding.file for each in found) else [finding]
        sealed, digest = _sealed(storage, logs)
        logs = Logs([each for each in logs.up_to(version - 1).scans if each.head.link != UNKNOWN])
        if version == sealed + 1:  # what is sealed is whole, and nothing behind it
            link = bytes.fromhex(read_manifest(storage, sealed, digest).link) if sealed else GENESIS
            logs = Logs([Scan(LogHead(store, 0, version, link, sealed, digest), [], [], LOG_HEAD.size)])
            break
    if not logs.scans:
        raise DamagedError(f"{storage} has no log of which anything is whole; see abi wdbx verify")
    return logs, found


def _sealed(storage: Storage, logs: Logs) -> tuple[int, bytes]:
    """Version and hash of the manifest in force; where its record is damaged, of that which the first log goes on from.

    A sealing begins a log behind the version that it seals up to. Its record is in that log, and the log's head names
    the manifest before it.
    """
    version, digest = logs.manifest
    first = logs.scans[0].head
    if first.first <= version + 1:
        return version, digest
    for name in storage.names(MANIFESTS):
        data = storage.read(f"{MANIFESTS}/{name}") or b""
        found = manifest_hash(data)
        if f"{MANIFESTS}/{name}" == manifest_name(first.first - 1, found):
            said = parse_manifest(name, data)
            if first.link in (UNKNOWN, bytes.fromhex(said.link)):
                return said.version, found
    return version, digest


def _wrong(storage: Storage, logs: Logs, public_keys: Collection[str]) -> Iterator[tuple[int, Finding]]:
    """Versions behind the manifest in force from which on nothing is whole, and why."""
    sealed = _sealed(storage, logs)[0]
    for (_, later, version), finding in zip(logs.twice, logs.wrong(), strict=False):
        if later.next_version > sealed + 1:
            yield version, finding
    needed = [
        each for each in logs.scans if max(each.next_version - 1, each.damaged_version) > sealed or each is logs.newest
    ]
    for each in needed:
        if each.damaged_version:
            said = "a record is damaged that was acknowledged"
            yield each.damaged_version, Finding(f"log/{each.head.name}", f"version {each.damaged_version} on", said)
    if needed[0].head.first > sealed + 1:
        said = f"versions from {sealed + 1} are in no log file"
        yield sealed + 1, Finding(f"log/{needed[0].head.name}", f"versions from {needed[0].head.first}", said)
    for one, other in pairwise(needed):
        if one.next_version != other.head.first or one.link != other.head.link:
            said = f"does not go on from version {one.next_version - 1}, the last before it that is whole"
            yield one.next_version, Finding(f"log/{other.head.name}", f"versions from {other.head.first}", said)
    counting = [record for record in logs.records if record.head.version > sealed or record is logs.sealing]
    for record, wrong in unsigned(counting, logs.newest.head.store, public_keys):
        version = record.head.version
        yield version, Finding(f"log/{logs.file_of(version)}", f"version {version} on", wrong)
        break
    for version, wrong in wrong_sealings(storage, logs, _in_force(storage, logs)):
        if logs.sealing is not None and version == logs.sealing.head.version:
            yield version, Finding(f"log/{logs.file_of(version)}", f"version {version} on", wrong)
    erased = set(_erased(storage, logs))
    for each in needed:
        for record in each.records:
            head = record.head
            if head.version > sealed and head.data_key not in erased and _opened(storage, record) is None:
                yield head.version, Finding(f"log/{each.head.name}", f"version {head.version} on", "does not open")
                return


def _in_force(storage: Storage, logs: Logs) -> Manifest | None:
    """The manifest that the last sealing names, where it can be read."""
    version, digest = logs.manifest
    with contextlib.suppress(DamagedError):
        return read_manifest(storage, version, digest, frozenset(_erased(storage, logs))) if version else None
    return None


def _erased(storage: Storage, logs: Logs) -> Iterator[int]:
    """Data keys that records say are erased, of those that open."""
    for record in logs.records if storage.ring is not None else ():
        if record.head.kind is Kind.ERASE and (opened := _opened(storage, record)) is not None:
            yield from json.loads(opened.payload)["keys"]


def _opened(storage: Storage, record: Record) -> Record | None:
    with contextlib.suppress(DamagedError):
        return open_record(storage.ring, record)
    return None


def _segments(storage: Storage, manifest: Manifest, before: Loaded | None) -> tuple[LeftOut, list[Finding]]:
    """What of a manifest's segments cannot be shown, and why. before: what was read last, and is not read again."""
    rows: set[int] = set()
    collections: dict[int, str] = {}
    found: list[Finding] = []
    known = before.manifest.segments if before is not None and before.manifest is not None else {}
    for number, entry in manifest.segments.items():
        folder = step_name(number)
        if before is not None and known.get(number) == entry:
            found += [each for each in before.findings if each.file.startswith(f"{folder}/")]
            rows |= {number} & before.left.rows
            collections |= {n: name for n, name in before.left.collections.items() if name == folder}
            continue
        wrong = list(_step(storage, folder, entry, manifest))
        found += wrong
        arrays = {path.split("/")[0] for path in entry.files if path.endswith("/.zarray")}
        own = {f"{folder}/{path}" for path in entry.files}
        damaged = arrays & {each.file.split("/")[2] for each in wrong if each.file in own}
        rows |= {number} if damaged else set()
        if damaged and entry.deaths and not _tells_deaths(storage, folder, entry, damaged):
            collections[entry.collection] = folder
    return LeftOut(frozenset(rows), collections), found


def _step(storage: Storage, folder: str, entry: SegmentEntry, manifest: Manifest) -> Iterator[Finding]:
    holds = f"rows of collection {manifest.collections[entry.collection].spec.name}"
    for path, digest in sorted(entry.files.items()):
        if wrong := wrong_file(storage, f"{folder}/{path}", digest):
            yield Finding(f"{folder}/{path}", holds, wrong)
    for path in sorted(set(storage.paths(folder)) - set(entry.files)):
        yield Finding(f"{folder}/{path}", holds, "is not of what was sealed")


def _tells_deaths(storage: Storage, folder: str, entry: SegmentEntry, damaged: set[str]) -> bool:
    """Whether what a step tells of deaths is whole, though others of its arrays are not."""
    with contextlib.suppress(DamagedError):
        return not damaged & {"deaths", ABOUT} and "deaths" in storage.load(folder, entry.files)
    return False


def _history(storage: Storage, manifest: Manifest) -> Iterator[Finding]:
    for name, entry in manifest.history.items():
        if wrong := wrong_file(storage, f"{HISTORY}/{name}", entry.digest):
            yield Finding(f"{HISTORY}/{name}", f"links of versions {entry.first} to {entry.last}", wrong)


def _witness(storage: Storage, version: int) -> Iterator[Finding]:
    data = storage.read(HEAD_FILE)
    try:
        said = None if data is None else read_witness("it", data)
    except DamagedError as error:
        yield Finding(HEAD_FILE, "where the chain was", str(error))
        return
    if said is not None and said.version > version:
        yield Finding(HEAD_FILE, f"version {said.version}", f"what is shown ends at version {version}")

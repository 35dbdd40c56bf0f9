"""Whether a store is as it was written: every file, every link, every row. Finds all that is wrong, and names it."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import sleep
from typing import Any

from abi_jax.errors import InputError
from abi_jax.lineage_receipt import Receipt
from abi_jax.wdbx.crypto.check import wrong_keys, wrong_records
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from abi_jax.wdbx.crypto.master import KeySource
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.findings import Finding, wrong_file
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.history import parse_history
from abi_jax.wdbx.load import STORE_FILE, about_hash, erased_keys, open_ring, read_about, step_name, wrong_sealings
from abi_jax.wdbx.log.file import Scan, parse_log_head, scan
from abi_jax.wdbx.log.order import Logs, in_order
from abi_jax.wdbx.manifest import FOLDER as MANIFESTS
from abi_jax.wdbx.manifest import IndexEntry, Manifest, SegmentEntry, manifest_hash, manifest_name, parse_manifest
from abi_jax.wdbx.pins import EVERYTHING, Pin, hold, read_pin
from abi_jax.wdbx.receipt import receipt_findings
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.segment_digest import segment_content
from abi_jax.wdbx.signed import NOT_PUT_IN_FORCE, never_signed
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.storage.base import FOLDERS, Storage
from abi_jax.wdbx.storage.lease import read_lease
from abi_jax.wdbx.storage.place import open_storage
from abi_jax.wdbx.stored_lists import FOLDER as INDEXES
from abi_jax.wdbx.stored_lists import index_name
from abi_jax.wdbx.verify_chain import Line, chain_findings, line_up, witness_findings
from abi_jax.wdbx.witness import HEAD_FILE, read_witness

Progress = Callable[[str], None]
ATTEMPTS, WAIT_SECONDS = 5, 0.05
# What the file `lock` may say; zeros are what a power cut leaves of a line that was not yet on disk.
OWNERS = re.compile(rb"(\0*process \d+\n)*\0*")


def verify(
    storage: Storage,
    progress: Progress = lambda file: None,
    receipt: Receipt | None = None,
    public_key: str = "",
) -> list[Finding]:
    """Everything that is wrong with a store. Raises `InputError` where there is none.

    receipt: whether the store is that of the receipt, or has grown since. public_key, hexadecimal: who must have signed
    it. Another process may write to it meanwhile: what it is about is looked at again until it holds still. Of an
    encrypted store whose storage has no data keys all is looked at but what only the keys open.
    """
    pin = hold(storage, EVERYTHING)
    try:
        for _ in range(ATTEMPTS):
            before = _state(storage)
            walk = _Walk(storage, progress)
            found = list(walk.small_files())
            if not found or (_state(storage) == before and not walk.written):
                break
            sleep(WAIT_SECONDS)
        if receipt is not None:
            found += walk.compare(receipt, public_key)
        return found + list(walk.segments())
    finally:
        if pin is not None:
            pin.release()


def _state(storage: Storage) -> list[tuple[str, int]]:
    """What is there, and how large those files are that grow or are replaced."""
    names = [f"{folder}/{name}" for folder in ("log", MANIFESTS) for name in storage.all_names(folder)]
    steps = [(f"{folder}/{name}", 0) for folder in ("segments", INDEXES) for name in storage.all_names(folder)]
    return steps + [(name, storage.size(name)) for name in (*names, HEAD_FILE, "lock")]


class _Walk:
    def __init__(self, storage: Storage, progress: Progress) -> None:
        self.storage = storage
        self.progress = progress
        self.known = {STORE_FILE, HEAD_FILE, "lock"}
        self.written = storage.written()
        self.line = Line()
        self.steps: dict[int, tuple[SegmentEntry, CollectionSpec, bool]] = {}  # and whether it must be there
        self.indexes: dict[int, tuple[IndexEntry, bool]] = {}
        self.erased: frozenset[int] = frozenset()
        self.public_keys: list[str] = []

    def small_files(self) -> Iterator[Finding]:
        """What is wrong with everything but segments, and what does not belong there at all."""
        store: bytes | None = None
        about: dict[str, Any] = {}
        try:
            if self.storage.read(STORE_FILE) is None and self.storage.names("log"):
                raise DamagedError("is missing")
            about = read_about(self.storage)
            store, self.public_keys = bytes.fromhex(about["store"]), about["public_keys"]
        except DamagedError as error:
            yield Finding(STORE_FILE, "what the store is", str(error))
        if about.get("encryption") is not None and store is not None:
            self._read(KEYS_FILE)
            yield from (Finding(KEYS_FILE, *wrong) for wrong in wrong_keys(self.storage, store))
        scans: list[Scan] = []
        for name in self.storage.names("log"):
            yield from self._log(name, store, scans)
        logs = in_order(scans)
        if not scans:
            yield Finding("log", "the last versions", "has no log file; expected at least one")
        if store is not None:
            yield from self._records(logs, store)
        pins: list[Pin] = []
        yield from self._pins(pins)
        kept = {pin.manifest for pin in pins}
        with contextlib.suppress(DamagedError):  # which is told below
            kept |= set(read_witness("it", self.storage.read(HEAD_FILE) or b"").kept)
        manifests: list[Manifest] = []
        yield from self._manifests(logs, kept, manifests)
        for version, wrong in wrong_sealings(self.storage, logs, manifests[0] if manifests else None):
            yield Finding(f"log/{logs.file_of(version)}", f"version {version}", wrong)
        for manifest in manifests:
            yield from self._history(manifest, first=manifest is manifests[0])
        line_up(self.line, logs)
        yield from chain_findings(self.line, logs, manifests[0] if manifests else None)
        owners = self.storage.read("lock") or b""
        if not OWNERS.fullmatch(owners) and read_lease(owners) is None:
            yield Finding("lock", "who writes", f"is {owners[:40]!r}; expected lines that name processes")
        said = self.storage.read(HEAD_FILE)
        yield from witness_findings(said, self.line, logs, closed=not owners and not self.written)
        yield from self._strays()

    def _log(self, name: str, store: bytes | None, scans: list[Scan]) -> Iterator[Finding]:
        file = f"log/{name}"
        self.known.add(file)
        self.progress(file)
        data = self.storage.read(file) or b""
        head = parse_log_head(data)
        if head is None or head.store != (store or head.store) or head.name != name:
            yield Finding(file, "versions", "does not begin as a log of this store does")
            return
        scans.append(scan(head, data))

    def _records(self, logs: Logs, store: bytes) -> Iterator[Finding]:
        """What only somebody with the keys could have written, and signatures."""
        with contextlib.suppress(DamagedError):  # a record that does not open is told below
            self.erased = erased_keys(self.storage.ring, logs.records)
        for each in logs.scans:
            for version, wrong in wrong_records(self.storage.ring, each.records, self.erased, store, self.public_keys):
                yield Finding(f"log/{each.head.name}", f"version {version}", wrong)

    def _pins(self, pins: list[Pin]) -> Iterator[Finding]:
        for name in self.storage.names("pins"):
            data = self.storage.read(f"pins/{name}")
            if data is not None:
                self.known.add(f"pins/{name}")
                try:
                    pins.append(read_pin("it", data))
                except DamagedError as error:
                    yield Finding(f"pins/{name}", "what a reader reads", str(error))

    def _manifests(self, logs: Logs, kept: set[str], manifests: list[Manifest]) -> Iterator[Finding]:
        """The manifest in force first, then the one before it, then those that readers stand on."""
        wanted: tuple[int, str] | None = (logs.manifest[0], logs.manifest[1].hex()) if logs.manifest[0] else None
        newest = ""
        for why in ("in force", "before"):
            if wanted is None:
                break
            version, digest = wanted
            file, holds = manifest_name(version, bytes.fromhex(digest)), f"what is sealed up to version {version}"
            data = self._read(file)
            wanted = None
            if why == "in force" and self.public_keys and logs.sealing is None:
                yield Finding(file, holds, NOT_PUT_IN_FORCE)
            if data is None:
                yield Finding(file, holds, "is missing")
            elif manifest_hash(data).hex() != digest:
                yield Finding(file, holds, "is not the one that was sealed")
            elif why == "in force":
                newest = file
                try:
                    manifests.append(parse_manifest(file, data, self.storage.ring, self.erased))
                except DamagedError as error:
                    yield Finding(file, holds, str(error))
                    manifests.append(parse_manifest(file, data, None))
                wanted = manifests[0].previous
                self._know(manifests[0], must=True)
        for file in sorted(kept - {newest, ""}):
            data = self._read(file)
            hashed = "" if data is None else manifest_name(0, manifest_hash(data))
            if data is not None and hashed[-22:] != file[-22:]:
                yield Finding(file, "what a reader stands on", "is not the one that was sealed")
            elif data is not None:
                manifests.append(parse_manifest(file, data))
                self._know(manifests[-1], must=False)

    def _read(self, file: str) -> bytes | None:
        self.known.add(file)
        self.progress(file)
        return self.storage.read(file)

    def _know(self, manifest: Manifest, must: bool) -> None:
        """Notes the segments and indexes that a manifest names. must: whether they have to be there."""
        for number, step in manifest.segments.items():
            self.steps.setdefault(number, (step, manifest.collections[step.collection].spec, must))
        for number, index in manifest.indexes.items():
            self.indexes.setdefault(number, (index, must))

    def _history(self, manifest: Manifest, first: bool) -> Iterator[Finding]:
        """What is wrong with heads of versions that are sealed. first: the manifest in force, whose chain it is."""
        for name, entry in sorted(manifest.history.items()):
            file = f"{HISTORY}/{name}"
            if file in self.known:
                continue
            data = self._read(file)
            if data is None and not first:
                continue
            try:
                heads = parse_history("it", data, entry)
            except DamagedError as error:
                yield Finding(file, f"links of versions {entry.first} to {entry.last}", str(error))
                continue
            for version in never_signed(heads, self.public_keys):
                yield Finding(file, f"version {version}", "was not signed, in a store that takes signed versions only")
            if first:
                self.line.add(heads, file)

    def compare(self, receipt: Receipt, public_key: str) -> list[Finding]:
        """What a receipt says that the store does not."""
        about = ""
        with contextlib.suppress(InputError):  # which is told already
            about = about_hash(self.storage)
        return receipt_findings(receipt, about, self.line.links(), self.line.version, public_key)

    def segments(self) -> Iterator[Finding]:
        """What is wrong with segments, and with indexes of them."""
        for number, (step, spec, must) in sorted(self.steps.items()):
            if must or self.storage.all_names(step_name(number)):
                yield from self._segment(number, step, spec)
        for number, (index, must) in sorted(self.indexes.items()):
            if must or self.storage.all_names(index_name(number)):
                step, spec, _ = self.steps[index.segment]
                of = f"{step.rows} rows of collection {spec.name}"
                yield from self._arrays(index_name(number), index.files, of)

    def _arrays(self, folder: str, files: Mapping[str, str], of: str) -> Iterator[Finding]:
        """What is wrong with files of a step. files: their hashes by their paths. of: what they tell something of."""
        for path, digest in sorted(files.items()):
            file, holds = f"{folder}/{path}", f"{path.split('/')[0]} of {of}"
            self.progress(file)
            if wrong := wrong_file(self.storage, file, digest):
                yield Finding(file, holds, wrong)

    def _segment(self, number: int, step: SegmentEntry, spec: CollectionSpec) -> Iterator[Finding]:
        folder = step_name(number)
        rows = f"{step.rows} rows of collection {spec.name}"
        wrong = list(self._arrays(folder, step.files, rows))
        yield from wrong
        if not wrong and step.rows and spec.known:
            try:
                segment = Segment(number, spec, step.first, self.storage.load(folder, step.files))
                content = segment_content(segment).hex()
                as_said = segment.stored_spec == step.spec(spec)
            except (InputError, ValueError, KeyError) as error:
                yield Finding(folder, rows, f"cannot be read: {error}")
                return
            if content != step.content or not as_said:
                yield Finding(folder, rows, "its rows are not those sealed")

    def _strays(self) -> Iterator[Finding]:
        known = self.known | {f"{step_name(n)}/{path}" for n, (step, *_) in self.steps.items() for path in step.files}
        known |= {f"{index_name(n)}/{path}" for n, (index, _) in self.indexes.items() for path in index.files}
        for file in sorted(path for folder in ("", *FOLDERS) for path in self._files(folder)):
            if file not in known and not (self.written and _unfinished(file)):
                yield Finding(file, "nothing", "no manifest names it: left by a crash, or put there")

    def _files(self, folder: str) -> list[str]:
        if folder == "":
            return [name for name in self.storage.all_names("") if name not in FOLDERS]
        return [f"{folder}/{path}" for path in self.storage.paths(folder)]


def _unfinished(file: str) -> bool:
    """Whether a file may be what a writer is about: not named yet, or no longer, and not yet taken away."""
    return file.split("/")[0] in ("segments", INDEXES, HISTORY, MANIFESTS) or ".tmp-" in file


def verify_store(
    path: str | Path, key: KeySource | None = None, receipt: Receipt | None = None, public_key: str = ""
) -> list[Finding]:
    """Everything that is wrong with the store at `path`, which nobody needs to have open; see `Database.verify`.

    key: of an encrypted store. Without it, all is verified but the contents of rows.
    """
    storage = open_storage(path)
    if key is not None:
        open_ring(storage, key)
    return verify(storage, receipt=receipt, public_key=public_key)

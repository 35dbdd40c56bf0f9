"""Whether a store is as it was written: every file, every link, every row. Finds all that is wrong, and names it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.history import parse_history
from abi_jax.wdbx.load import STORE_FILE, read_store, step_name
from abi_jax.wdbx.log.file import Scan, parse_log_head, scan
from abi_jax.wdbx.log.record import GENESIS, Head, Kind
from abi_jax.wdbx.manifest import Manifest, SegmentEntry, manifest_hash, manifest_name, parse_manifest
from abi_jax.wdbx.seal import segment_content
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.storage.local import FOLDERS, LocalStorage
from abi_jax.wdbx.witness import HEAD_FILE, read_witness

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """Something wrong: the file, what it holds, and what is wrong with it."""

    file: str
    holds: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file} ({self.holds}): {self.wrong}"


def verify(storage: LocalStorage, progress: Progress = lambda file: None) -> list[Finding]:
    """Everything that is wrong with a store. Raises `InputError` where there is none."""
    return list(_Walk(storage, progress).findings())


class _Walk:
    def __init__(self, storage: LocalStorage, progress: Progress) -> None:
        self.storage = storage
        self.progress = progress
        self.known = {STORE_FILE, HEAD_FILE, "lock"}

    def findings(self) -> Iterator[Finding]:
        try:
            store = read_store(self.storage)
        except DamagedError as error:
            yield Finding(STORE_FILE, "what the store is", str(error))
            return
        scans: list[Scan] = []
        for name in self.storage.names("log"):
            yield from self._log(name, store, scans)
        scans.sort(key=lambda each: (each.head.epoch, each.head.first))
        manifests: list[Manifest] = []
        yield from self._manifests(scans, manifests)
        heads: list[Head] = []
        if manifests:
            yield from self._history(manifests[0], heads)
            for number, step in sorted(manifests[0].segments.items()):
                yield from self._segment(number, step, manifests[0].collections[step.collection].spec)
            for older in manifests[1:]:
                self._know(older)
        yield from self._chain(scans, heads, manifests[0] if manifests else None)
        yield from self._strays()

    def _log(self, name: str, store: bytes, scans: list[Scan]) -> Iterator[Finding]:
        file = f"log/{name}"
        self.known.add(file)
        self.progress(file)
        data = self.storage.read(file) or b""
        head = parse_log_head(data)
        if head is None or head.store != store or head.name != name:
            yield Finding(file, "versions", "does not begin as a log of this store does")
            return
        found = scan(head, data)
        scans.append(found)
        if found.damaged_version:
            yield Finding(
                file, f"version {found.damaged_version} and later", "a record is damaged that was acknowledged"
            )
        elif found.torn:
            size = found.size - found.end
            yield Finding(
                file, f"version {found.next_version}", f"ends with {size} bytes that are no record: cut off, or damaged"
            )

    def _manifests(self, scans: list[Scan], manifests: list[Manifest]) -> Iterator[Finding]:
        """The manifest in force first, then those before it that are still there."""
        wanted: tuple[int, str] | None = None
        if scans and scans[-1].head.manifest:
            wanted = (scans[-1].head.manifest, scans[-1].head.manifest_hash.hex())
        for record in (record for each in scans for record in each.records if record.head.kind is Kind.SEAL):
            said = json.loads(record.payload)
            if wanted is None or said["version"] >= wanted[0]:
                wanted = (said["version"], said["hash"])
        while wanted is not None:
            version, digest = wanted
            file = manifest_name(version, bytes.fromhex(digest))
            data = self.storage.read(file)
            self.known.add(file)
            self.progress(file)
            wanted = None
            if data is None:
                if not manifests:
                    yield Finding(file, f"what is sealed up to version {version}", "is missing")
            elif manifest_hash(data).hex() != digest:
                yield Finding(file, f"what is sealed up to version {version}", "is not the one that was sealed")
            else:
                manifests.append(parse_manifest(file, data))
                wanted = manifests[-1].previous

    def _history(self, manifest: Manifest, heads: list[Head]) -> Iterator[Finding]:
        for name, entry in sorted(manifest.history.items()):
            file = f"{HISTORY}/{name}"
            self.known.add(file)
            self.progress(file)
            try:
                heads += parse_history(file, self.storage.read(file), entry)
            except DamagedError as error:
                yield Finding(file, f"links of versions {entry.first} to {entry.last}", str(error))

    def _know(self, manifest: Manifest) -> None:
        for number, step in manifest.segments.items():
            self.known |= {f"{step_name(number)}/{path}" for path in step.files}

    def _segment(self, number: int, step: SegmentEntry, spec: CollectionSpec) -> Iterator[Finding]:
        folder = step_name(number)
        whole = True
        there = self.storage.files(folder)
        for path, digest in sorted(step.files.items()):
            file = f"{folder}/{path}"
            self.known.add(file)
            self.progress(file)
            holds = f"{path.split('/')[0]} of {step.rows} rows of collection {spec.name}"
            if path not in there:
                yield Finding(file, holds, "is missing")
                whole = False
            elif hashlib.sha256(there[path].read_bytes()).hexdigest() != digest:
                yield Finding(file, holds, "is not what was sealed")
                whole = False
        if whole and step.rows:
            try:
                segment = Segment(number, spec, step.first, self.storage.load(folder))
                content = segment_content(segment).hex()
            except (InputError, ValueError, KeyError) as error:
                yield Finding(folder, f"{step.rows} rows of collection {spec.name}", f"cannot be read: {error}")
                return
            if content != step.content:
                yield Finding(folder, f"{step.rows} rows of collection {spec.name}", "its rows are not those sealed")

    def _chain(self, scans: list[Scan], heads: list[Head], manifest: Manifest | None) -> Iterator[Finding]:
        """Every link, from the first version to the last; what the manifest and the file `head` say of the chain."""
        files = [HISTORY] * len(heads)
        for each in scans:
            file = f"log/{each.head.name}"
            kept = [i for i, head in enumerate(heads) if head.version < each.head.first]
            heads, files = [heads[i] for i in kept], [files[i] for i in kept]
            before = heads[-1].link if heads else GENESIS
            if (heads[-1].version if heads else 0) + 1 != each.head.first or before != each.head.link:
                said = f"does not go on from version {heads[-1].version if heads else 0}, the last before it"
                yield Finding(file, f"versions from {each.head.first}", said)
            heads += [record.head for record in each.records]
            files += [file] * len(each.records)
        previous, version = GENESIS, 0
        links = {0: GENESIS.hex()}
        for head, file in zip(heads, files, strict=True):
            if head.version != version + 1:
                yield Finding(file, f"version {head.version}", f"follows version {version}: versions are missing")
            elif head.link != head.link_after(previous):
                yield Finding(file, f"version {head.version}", "its link does not follow from the one before it")
            previous, version = head.link, head.version
            links[version] = head.link.hex()
        if manifest is not None and links.get(manifest.version) != manifest.link:
            yield Finding("manifests", f"up to version {manifest.version}", "its link is not the chain's")
        yield from self._witness(version, links)

    def _witness(self, version: int, links: dict[int, str]) -> Iterator[Finding]:
        data = self.storage.read(HEAD_FILE)
        if data is None:
            yield Finding(HEAD_FILE, "where the chain was", "is missing")
            return
        try:
            said = read_witness(HEAD_FILE, data)
        except DamagedError as error:
            yield Finding(HEAD_FILE, "where the chain was", str(error))
            return
        if said.version > version:
            yield Finding(
                HEAD_FILE, f"version {said.version}", f"the chain ends at version {version}: its end was cut off"
            )
        elif links.get(said.version, said.link) != said.link:
            yield Finding(HEAD_FILE, f"version {said.version}", "its link is not the chain's")
        elif said.closed and said.version < version:
            yield Finding(HEAD_FILE, f"version {said.version}", f"closed there, but the chain goes on to {version}")

    def _strays(self) -> Iterator[Finding]:
        for file in sorted(path for folder in ("", *FOLDERS) for path in self._files(folder)):
            if file not in self.known and not file.startswith("pins/"):
                yield Finding(file, "nothing", "no manifest names it: left by a crash, or put there")

    def _files(self, folder: str) -> list[str]:
        if folder == "":
            return [name for name in self.storage.all_names("") if name not in FOLDERS]
        return [f"{folder}/{path}" for path in self.storage.files(folder)]

"""A store that is open: its lock and log, commits, sealing, and letting it go. What people ask of it is `Database`."""

import contextlib
import threading
from collections.abc import Sequence
from time import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax.errors import InputError
from abi_jax.wdbx.arrive import arrive
from abi_jax.wdbx.background import Background
from abi_jax.wdbx.collect import collect, collect_at_close
from abi_jax.wdbx.contents import Contents
from abi_jax.wdbx.create import create_store, refuse_other_folder
from abi_jax.wdbx.crypto.master import KeySource, read_master
from abi_jax.wdbx.crypto.records import RecordSeals
from abi_jax.wdbx.crypto.signatures import check_signer
from abi_jax.wdbx.errors import FencedError, NoCollectionError, WdbxError
from abi_jax.wdbx.fence import Fence
from abi_jax.wdbx.history import history_head
from abi_jax.wdbx.indexing import lacking, made_lists, store_lists
from abi_jax.wdbx.load import STORE_FILE, Loaded, load, open_ring, read_about
from abi_jax.wdbx.log.commit import Commits, Draft, Position
from abi_jax.wdbx.log.file import LOG_HEAD, LogHead
from abi_jax.wdbx.log.record import EMPTY, Head, Kind
from abi_jax.wdbx.manifest import Sealed
from abi_jax.wdbx.pins import EVERYTHING, Pin, held, hold
from abi_jax.wdbx.seal import is_crowded, is_new, seal
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.storage.base import Held, Storage, WriterLock
from abi_jax.wdbx.transfer.importing import Steps, stream
from abi_jax.wdbx.transfer.piece import Columns
from abi_jax.wdbx.transfer.sources import open_source
from abi_jax.wdbx.versions import At, oldest_needed, resolve, version_at
from abi_jax.wdbx.whole import check_mode, load_for_reading
from abi_jax.wdbx.witness import HEAD_FILE, Witness

RETENTION = 3600.0
SEAL_AT_CLOSE = 64 << 10  # bytes of a log


class Store:
    """A store that is open, for writing (`mode="a"`, one at a time) or for reading (`mode="r"`, any number)."""

    products = False  # whether lists have product codes, too
    mesh: Any = None  # what searches, and makes lists, where that is not this host

    def __init__(
        self,
        storage: Storage,
        mode: str = "a",
        retention: float = RETENTION,
        background: bool = True,
        key: KeySource | None = None,
        sign_with: Ed25519PrivateKey | None = None,
        indexes: bool = True,
        damaged: str = "refuse",
    ) -> None:
        """retention: seconds for which every version can be read. background: seals without being asked.

        key: of an encrypted store. sign_with: signs every version. indexes: stores inverted lists of large segments.
        damaged: "ignore" reads what is whole.
        """
        check_mode(mode, damaged)
        self.storage, self.mode, self._damaged = storage, mode, damaged
        self._lock: WriterLock | None = None
        self._pin: Held | None = None
        self._read: Loaded | None = None  # at the last refresh
        self._began = False  # to change what is stored
        self._closing = self._closed = False
        self._commits: Commits | None = None
        self._background: Background | None = None
        self._indexing: Background | None = None
        self._indexes = indexes
        self._retention, self._key, self._signer = retention, key, sign_with
        self._changing = threading.RLock()
        self._sealing = threading.Lock()
        try:
            if mode == "a":
                self._open_to_write()
                if background:
                    self._background = Background(self.seal, self._due)
                if background and indexes:
                    self._indexing = Background(self._index, lambda: len(self._lacking()), "indexing")
                    self._indexing.written()
            else:
                open_ring(storage, key)
                self.refresh()
        except BaseException:
            self._unlock()
            raise

    def refresh(self) -> int:
        """Reads what was written since a store was opened for reading; the last version.

        Raises `WdbxError` where it has been closed.
        """
        self.check_open()
        if self.mode == "r":
            looking = hold(self.storage, EVERYTHING)
            try:
                self._loaded = self._read = load_for_reading(self.storage, self._read, self._damaged)
                self._sealed = Sealed(self._loaded.manifest, self._loaded.manifest_hash)
                before, self._pin = self._pin, hold(self.storage, Pin(self._loaded.contents.version, self._sealed.name))
            finally:
                if looking is not None:
                    looking.release()
            if before is not None:
                before.release()
        return self.version

    def check_open(self) -> None:
        """Raises `WdbxError` where it has been closed."""
        if self._closed:
            raise WdbxError(f"{self.storage} is closed; expected a store that is open")

    @property
    def _contents(self) -> Contents:
        self.check_open()
        return self._loaded.contents

    @property
    def version(self) -> int:
        """The last version."""
        return self._contents.version

    @property
    def store(self) -> bytes:
        """The 16 bytes that the store is known by."""
        self.check_open()
        return self._loaded.store

    @property
    def sealed(self) -> Sealed:
        """The manifest in force."""
        self.check_open()
        return self._sealed

    def _open_to_write(self) -> None:
        if self.storage.read(STORE_FILE) is None:
            refuse_other_folder(self.storage)
            master = None if self._key is None else read_master(self._key)
            self.storage.make()
            self._lock = self.storage.lock()
            if self.storage.read(STORE_FILE) is None:
                create_store(self.storage, master, self._signer)
        open_ring(self.storage, self._key)
        check_signer(self.storage, self._signer, read_about(self.storage)["public_keys"])
        if self._lock is None:
            self._lock = self.storage.lock()
            self.storage.make()  # a copy may lack folders that are empty
        if self.storage.ring is not None:
            self.storage.ring.catch_up()  # the writer before may have changed the master key until it was locked
        self._loaded = load(self.storage)
        self._sealed = Sealed(self._loaded.manifest, self._loaded.manifest_hash)
        self._begin_log(self._loaded)
        if self.storage.ring is not None:
            self.storage.ring.drop(self._loaded.erased)
        collect(self.storage, self._sealed, held(self.storage))

    def _begin_log(self, loaded: Loaded) -> None:
        """Cuts off what a crash left, and begins a log file of a new epoch."""
        newest = loaded.newest
        self._began = True
        if newest.torn:
            torn = self.storage.append_to(f"log/{newest.head.name}")
            torn.truncate(newest.end)
            torn.sync()
            torn.close()
        contents, epoch = loaded.contents, newest.head.epoch + 1
        head = LogHead(
            loaded.store,
            epoch,
            contents.version + 1,
            contents.link,
            self._sealed.manifest.version if self._sealed.manifest else 0,
            self._sealed.digest,
        )
        self.storage.put(f"log/{head.name}", head.encode())
        log = self.storage.append_to(f"log/{head.name}")
        position = Position(contents.version, contents.link, contents.time, epoch)
        assert self._lock is not None
        fence = Fence(self.storage, self._lock, epoch)
        if self.storage.ring is not None:
            self.storage.ring.lease = fence.check

        name, now = f"log/{head.name}", (contents.dropped, contents.columns)
        self._seals = RecordSeals(loaded.store, self.storage.ring, self._signer, name, *now)
        self._commits = Commits(log, LOG_HEAD.size, position, contents.apply, fence.check, self._seals)
        self._witness(closed=False)

    def _witness(self, closed: bool, kept: Sequence[str] = ()) -> None:
        contents, epoch = self._contents, self._writing().position.epoch
        self.storage.put(HEAD_FILE, Witness(contents.version, contents.link.hex(), epoch, closed, kept).encode())

    def _writing(self) -> Commits:
        self.check_open()
        if self._commits is None:
            raise WdbxError(f'{self.storage} is open for reading; expected mode="a" to write')
        if self._forked:
            raise FencedError(
                f"{self.storage} was opened by another process, of which this is a fork; expected to be opened in the "
                "process that writes to it"
            )
        return self._commits

    @property
    def _forked(self) -> bool:
        """Whether this is a fork of the process that writes: it may have locks that nobody in it will ever release."""
        return self._lock is not None and not self._lock.own

    def commit(
        self,
        kind: Kind,
        collection: int,
        rows: int,
        payload: bytes,
        tenant: str | None = None,
        columns: int | None = None,
    ) -> tuple[int, Any]:
        """Writes a version. Returns its number, and what applying it returned. tenant: the collection's.

        columns: of rows, how many they have. Raises `ColumnsChangedError` where the collection has others by now.
        """
        if tenant is None:
            there = self._contents.collections.get(collection)
            tenant = there.spec.tenant if there else ""
            if there and there.dropped and not there.erased:
                raise NoCollectionError(f"collection {there.spec.name!r} was dropped at version {there.dropped}")
        made = self._writing().commit(Draft(kind, collection, rows, payload, tenant, columns))
        self._tell(self._background, self._indexing)
        return made

    def _tell(self, *working: Background | None) -> None:
        """Tells what works in the background that there may be something to do, or that it is to wait."""
        for each in working:
            if each is not None:
                each.written()

    def _unsealed(self) -> int:
        """Bytes of the log that no segment holds, 0 where there is nothing but sealing in it."""
        return self._writing().size if is_new(self._contents, self._sealed) else 0

    def _due(self) -> int:
        """Bytes of the log that no segment holds, with what reading its versions costs; 1 for segments to be merged."""
        sealed = self._sealed.manifest.version if self._sealed.manifest else 0
        unsealed = self._unsealed()
        if not unsealed:
            return int(is_crowded(self._contents))
        return unsealed + self.storage.overhead * (self.version - sealed)

    def resolve(self, at: At = None) -> int:
        """The version that `at` means: itself, a tag's, the last at a time, or the last."""
        return resolve(at, self._contents, self.storage, self._sealed.manifest)

    def head(self, version: int) -> Head:
        """The head of a version that there is."""
        if version == 0:
            return EMPTY
        heads = self._contents.heads
        if heads and version >= heads[0].version:
            return heads[version - heads[0].version]
        return history_head(self.storage, self._sealed.manifest, version)

    def seal(self, everything: bool = False) -> None:
        """Turns what only the log holds into segments."""
        self._writing()  # in a fork, nobody may ever release what is waited for next
        with self._sealing:
            self._seal(everything)
            self._writing().check_fence()
            collect(self.storage, self._sealed, held(self.storage))
        self._tell(self._indexing)

    def index(self, number: int | None = None) -> int:
        """Makes and stores inverted lists of all segments that are worth it, of collection `number` or of all.

        Seals first. Returns how many were stored: none where a store is open for reading, or is to have no indexes.
        """
        if self.mode == "r" or not self._indexes:
            return 0
        self._writing()
        with self._sealing:
            self._seal()
        return self._index(number)

    def _lacking(self, number: int | None = None) -> list[Segment]:
        return lacking(self._contents, number, self.products)

    def _index(self, number: int | None = None) -> int:
        stored = 0
        for segment in self._lacking(number):
            lists = made_lists(segment, self.products, self.mesh)
            with self._sealing:
                if self._closing:
                    break
                about = (self.storage, self._contents, self._writing(), self._sealed, segment)
                if lists is not None and store_lists(*about, lists, self._put_in_force):
                    stored += 1
                    collect(self.storage, self._sealed, held(self.storage))
        return stored

    def _seal(self, everything: bool = False) -> None:
        commits, store, contents = self._writing(), self._loaded.store, self._contents
        commits.check_fence()  # whoever has the store now may have taken away what is read next
        since = self._horizons()
        seal(
            self.storage,
            store,
            contents,
            commits,
            self._sealed,
            lambda each: since.get(each.number, 0),
            self._put_in_force,
            everything,
        )

    def _put_in_force(self, sealed: Sealed) -> None:
        self._sealed = sealed

    def take_in(self, number: int, source: Any, columns: Columns, duplicates: str, progress: bool) -> int:
        """Imports rows into collection `number`; see `CollectionHandle.import_`."""
        commits, spec = self._writing(), self._contents.collections[number].spec
        steps = Steps(self.storage, spec, duplicates)
        try:
            rows = stream(steps, open_source(source, spec, columns), progress)
        except BaseException:
            steps.give_up(commits.check)
            raise
        try:
            if rows:
                with self._sealing:
                    self._seal()
                    contents, before = self._contents, self._sealed
                    brought = steps.written, steps.replaced
                    arrive(self.storage, contents, commits, before, number, *brought, self._put_in_force)
        finally:
            steps.done()
        self._tell(self._background, self._indexing)
        return rows

    def compact(self) -> None:
        """Makes few segments of each collection, with their lists, and takes away what can no longer be read."""
        self.seal(everything=True)
        self.index()

    def _horizons(self) -> dict[int, int]:
        """The first version of each collection that must stay readable. It may take a while: history is read."""
        there = held(self.storage)
        if any(pin.everything for pin in there):
            return dict.fromkeys(self._contents.collections, 0)
        now, pins = time(), [pin.version for pin in there]
        tags = list(self._contents.tags.values())
        kept: dict[float, int] = {}
        made = {}
        for number, each in list(self._contents.collections.items()):
            retention = self._retention if each.retention is None else each.retention
            if retention not in kept:
                late = int((now - retention) * 1e6)
                kept[retention] = version_at(late, self._contents, self.storage, self._sealed.manifest)
            made[number] = oldest_needed(kept[retention], each.created, pins, tags)
        return made

    def close(self) -> None:
        """Lets the store go; another process may write to it then."""
        self._closing, closed = True, False
        try:
            if self._indexing is not None and not self._forked:
                self._indexing.stop(wait=False)
                with self._sealing:  # lists that are being stored
                    pass
            if self._background is not None and not self._forked:
                self._background.stop()
            self._background = self._indexing = None
            if self._commits is not None and not self._forked:
                with contextlib.suppress(OSError, InputError):  # the log has it all
                    if self._unsealed() > SEAL_AT_CLOSE:
                        self.seal()
                certain = self._commits.certain
                self._commits.close()
                closed = certain and self._close_witness()
        finally:
            self._unlock(closed)
            self._commits = None
            self._closed = True

    def _close_witness(self) -> bool:
        """Writes where the chain ends, unless another writer has taken the store over; whether it did."""
        if self._lock is None or not self.storage.holds(self._lock):
            return False
        kept: list[str] = []
        with contextlib.suppress(OSError, InputError):  # the next writer does it
            kept = collect_at_close(self.storage, self._sealed)
        self._witness(closed=True, kept=kept)
        return True

    def _unlock(self, closed: bool = False) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release(closed, self._began)
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.release()

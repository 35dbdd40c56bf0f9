"""A store of objects: in the memory of this process, in S3, in Google Cloud Storage. docs/wdbx-format.md, "Objects".

An object is written whole or not at all, so nothing is renamed, and there is no half of a commit. A log is a folder of
objects, one a group of commits, each of which is created: two writers cannot both write the next one.
"""

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.steps import open_step, seal_step
from abi_jax.wdbx.errors import FencedError, StorageError, WdbxError
from abi_jax.wdbx.storage.arrays import read_arrays, save_arrays
from abi_jax.wdbx.storage.base import FOLDERS
from abi_jax.wdbx.storage.kvstore import Objects
from abi_jax.wdbx.storage.lease import LOCK, TERM, Keeper, ObjectLock, ObjectPin, pin_ended, read_lease
from abi_jax.wdbx.storage.object_log import ObjectLog, Parts, split_key
from abi_jax.wdbx.storage.step_files import file_hashes

STORE_FILE = "wdbx.json"
FAR = 1 << 40  # between the numbers of two writers
READ_AT_ONCE = 16  # objects of which the length alone is wanted
STEPS = ("log/", "segments/", "indexes/")  # what is a folder in these is one


class ObjectStorage:
    """Objects of a store by their names; a log is what its parts say, one behind the other.

    ring: the data keys of an encrypted store, whose steps are sealed here; None for a plain one.
    """

    tears = False
    overhead = 1 << 16  # about a thousand versions are sealed as a log that has grown

    def __init__(
        self,
        objects: Objects,
        term: float = TERM,
        check: Callable[[], None] = lambda: None,
        save: Callable[[Path, Mapping[str, np.ndarray]], None] = save_arrays,
    ) -> None:
        """term: seconds that leases last. check: raises `WdbxError` where the server cannot tell two writers apart.

        save: writes arrays as files of a step.
        """
        self.objects = objects
        self.ring: Keyring | None = None
        self.reserved: set[int] = set()  # steps of imports that go on
        self._keeper = Keeper(term)
        self._check = check
        self._save = save
        self._parts = Parts(objects)
        self._lock: ObjectLock | None = None
        self._listed = 0.0  # when names were last asked for, by the clock that never goes back
        self._seen: dict[
            str, bytes
        ] = {}  # the generation of a file of the store itself, as it was last read or written
        self._unsure: dict[str, list[bytes]] = {}  # what such a file may say since, for all that is known
        self._sizes: dict[str, int] = {}  # of what never changes
        self._saved: dict[str, bytes | None] = {}  # files of the last step, as they were read again to be hashed
        self._numbering = threading.Lock()
        self._last_step = 0

    def __str__(self) -> str:
        return self.objects.url

    @property
    def root(self) -> Path:
        """There is none: raises `InputError`."""
        raise InputError(f"{self} is no folder of this machine; expected a store that is one")

    def refuse_file(self) -> None:
        """Objects are no folders: nothing is in the way of a store."""

    def make(self) -> None:
        """Objects need no folders."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none. Of a log, what all parts say that are there."""
        if name.startswith("log/"):
            return self._parts.read(name)
        data, generation = self.objects.get(name)
        if "/" not in name:
            self._seen[name] = generation
        elif data is not None:
            self._sizes[name] = len(data)
        return data

    def read_log(self, name: str) -> bytes | None:
        """The content of a log, as of the last listing of all; None where there is none."""
        return self._parts.read_listed(name, keep=self._lock is None)

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files of a folder; 0 where there is none. What was not read before is read."""
        if "/" not in name and name not in FOLDERS:
            return len(self.read(name) or b"")
        keys = self._keys(name)
        unknown = [key for key in keys if key not in self._sizes]
        for start in range(0, len(unknown), READ_AT_ONCE):
            some = self.objects.get_all(unknown[start : start + READ_AT_ONCE])
            self._sizes |= {key: len(data) for key, data in some.items()}
        return sum(self._sizes.get(key, 0) for key in keys)

    def names(self, folder: str) -> list[str]:
        """Names of what is finished in a folder, sorted, without the folder's own."""
        return self._parts_listed() if folder == "log" else self.all_names(folder)

    def all_names(self, folder: str) -> list[str]:
        """Names of everything in a folder, sorted, finished or not."""
        prefix = f"{folder}/" if folder else ""
        return sorted({key.removeprefix(prefix).partition("/")[0] for key in self._list(prefix)})

    def partial(self) -> list[str]:
        """Names of everything that was begun and not finished: logs without a head."""
        begun = self._parts_listed()
        return [f"log/{name}" for name in self._parts.names(begun=False) if name not in begun]

    def paths(self, name: str) -> list[str]:
        """Every file of a folder, such as a step, by its path in it, sorted; parts of logs count as the log."""
        keys = self._list(f"{name}/")
        if name == "log":
            begun = {f"log/{each}" for each in self._parts_listed()}
            keys = sorted({split_key(key)[0] if split_key(key)[0] in begun else key for key in keys})
        return [key.removeprefix(f"{name}/") for key in keys]

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file, hexadecimal; None where there is none."""
        data, saved = self.read(name), self._saved  # which another thread may replace
        if data is not None and name in saved:
            saved[name] = data
        return None if data is None else hashlib.sha256(data).hexdigest()

    def put(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it: whole and durable, or not at all.

        Raises `FencedError` where a log is there already, or where a file of the store itself is no longer what this
        process read or wrote last: nothing of another writer is replaced.
        """
        if name.startswith("log/"):
            lock = self._locked()
            if not self._parts.begin(name, data):
                raise lock.lose(name)
            lock.confirm()
        elif "/" in name:
            self.objects.put(name, data)
            self._sizes[name] = len(data)
        else:
            made = self._replace(name, data)
            if made is None:
                raise FencedError(f"{self}/{name} has been replaced by another writer; nothing was written")
            self._seen[name] = made
            self._unsure.pop(name, None)

    def _replace(self, name: str, data: bytes) -> bytes | None:
        """Writes a file of the store itself; its generation. None where it is neither what was seen nor what was
        written since without an answer."""
        before = self._seen[name] if name in self._seen else self.objects.get(name)[1]
        unsure = self._unsure.setdefault(name, [])
        try:
            made = self.objects.replace(name, data, before)
            while made is None and (found := self.objects.get(name))[0] in unsure:
                made = self.objects.replace(name, data, found[1])
        except StorageError:
            unsure.append(data)
            raise
        return made

    def put_new(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there, whole and durable. False where there is one, which stays."""
        if name.startswith("log/"):
            return self._parts.begin(name, data)
        return self.objects.create(name, data) is not None

    def append_to(self, name: str) -> ObjectLog:
        """Opens a log that is there, to add to it."""
        return ObjectLog(self.objects, self._locked(), name, self._parts.following(name))

    def delete(self, name: str) -> None:
        """Takes a file or a folder away, if it is there.

        A writer makes sure that the store was still its own after it had looked for what may go: no other can have
        written any of it since.
        """
        lock, log = self._lock, name.startswith("log/")
        keys = [] if log else self._keys(name)
        if lock is not None and not lock.held(fresh=not log or lock.confirmed < self._listed):
            raise lock.fenced()
        if log:
            self._parts.delete(name)
        else:
            self.objects.delete(keys)
            self._seen.pop(name, None)

    def settle(self) -> None:
        """What was deleted does not come back."""

    def save(self, name: str, arrays: Mapping[str, np.ndarray], tenant: str) -> dict[str, str]:
        """Writes a step of arrays, durable; one that is interrupted is garbage, as long as no manifest names it.

        SHA-256 of its files by their path in it, as the server gives them back. tenant: whose they are, "" for the
        store's. Raises `WdbxError` where another writer has written there.
        """
        if self.ring is not None:
            arrays = seal_step(self.ring, name, arrays, tenant)
        with TemporaryDirectory(prefix="wdbx-") as folder:
            step = Path(folder) / "step"
            self._save(step, arrays)
            files = sorted(path for path in step.rglob("*") if path.is_file())
            made = {f"{name}/{path.relative_to(step).as_posix()}": path.read_bytes() for path in files}
        if taken := self.objects.create_all(made):
            raise WdbxError(f"{self}/{taken[0]} is there already, of another writer or one that was interrupted")
        self._sizes |= {key: len(data) for key, data in made.items()}
        self._saved = dict.fromkeys(made)
        return file_hashes(self, name)

    def next_step(self, reserve: bool = False) -> int:
        """A number that no step has or had, nor another writer draws. reserve: until it is no longer in `reserved`.

        A writer that has lost the store may yet write, or take away, what it has numbered itself: the next one numbers
        from far beyond.
        """
        with self._numbering:
            there = max((int(name) for name in self.names("segments")), default=0)
            if not self._last_step:
                self._last_step = there + secrets.randbelow(FAR)
            self._last_step = max(self._last_step, there) + 1
            if reserve:
                self.reserved.add(self._last_step)
            return self._last_step

    def load(self, name: str, files: Iterable[str]) -> Mapping[str, np.ndarray]:
        """The arrays of a step, in memory; of an encrypted one as they are stored, and opened when first asked for.

        files: its own. No other object is read.
        """
        saved, self._saved = self._saved, {}
        wanted = {f"{name}/{path}": path for path in files}
        found = {key: data for key in wanted if (data := saved.get(key)) is not None}
        if len(found) < len(wanted):
            found = self.objects.get_all(wanted)
        self._sizes |= {key: len(data) for key, data in found.items()}
        held = {wanted[key]: data for key, data in found.items()}
        arrays = read_arrays(f"{self}/{name}", wanted.values(), held)
        return arrays if self.ring is None else open_step(self.ring, name, arrays)

    def lock(self) -> ObjectLock:
        """Makes this process the one that writes, until what is returned is released or is not renewed any more.

        Raises `LockedError` where another one does, and `WdbxError` where the server could not tell two writers apart.
        """
        self._check()
        lock = ObjectLock(self.objects, self._keeper)
        lock.take()
        self._lock = lock
        try:
            if self.read(STORE_FILE) is None:
                self.objects.delete(self._list("log/"))  # of a creation that was interrupted
            self._parts.close_newest()
        except BaseException:
            lock.release(began=False)
            raise
        return lock

    def holds(self, lock: ObjectLock) -> bool:
        """Whether the store is still this process's to write to. Raises `StorageError` where nobody answers."""
        return lock.held()

    def newest_epoch(self) -> int:
        """0: whoever writes under a later epoch has replaced the object `lock`."""
        return 0

    def written(self) -> bool:
        """Whether some process has the store open for writing, or had it a short while ago and ended."""
        lease = read_lease(self.objects.get(LOCK)[0])
        return lease is not None and lease.seconds > 0

    def pin(self, data: bytes) -> ObjectPin | None:
        """Writes a pin that says `data`; it is held until it is released. None where nothing can be written."""
        made = ObjectPin(self.objects, self._keeper, data)
        try:
            made.write()
        except StorageError:
            return None
        return made

    def pins(self) -> dict[str, bytes]:
        """Pins that have not ended, by name, and what they say: nothing, where one was just renewed.

        Takes away those that have ended.
        """
        names = [f"pins/{name}" for name in self.names("pins")]
        ended = [name for name in names if pin_ended(name)]
        with contextlib.suppress(StorageError):  # who may only read leaves them to others
            self.objects.delete(ended)
        held = [name for name in names if name not in ended]
        found = self.objects.get_all(held)
        return {name: found.get(name, b"") for name in held}

    def _locked(self) -> ObjectLock:
        if self._lock is None:
            raise WdbxError(f"{self} is not locked; expected to be, by whoever writes to a log")
        return self._lock

    def _parts_listed(self) -> list[str]:
        found = self._parts.names()
        self._listed = monotonic()
        return found

    def _list(self, prefix: str) -> list[str]:
        found = self.objects.names(prefix)
        self._listed = monotonic()
        return found

    def _keys(self, name: str) -> list[str]:
        """Keys of a file, or of all files of a folder."""
        return self._list(f"{name}/") if name in FOLDERS or name.startswith(STEPS) else [name]

"""What a store asks of where it lives: a folder of this machine (`local.py`), or an object store (`objects.py`)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from abi_jax.wdbx.storage.operations import LogFile

if TYPE_CHECKING:
    from abi_jax.wdbx.crypto.keyring import Keyring

FOLDERS = ("log", "manifests", "segments", "indexes", "history", "pins")


class Held(Protocol):
    """A pin, for as long as it is held."""

    def release(self) -> None:
        """Lets go of it; in a fork, of the fork's hold on it alone."""


class WriterLock(Protocol):
    """What makes a process the one that writes."""

    @property
    def own(self) -> bool:
        """Whether it is this process's, and not that of one that this one was forked from."""

    def release(self, closed: bool = False, began: bool = True) -> None:
        """Lets go of it. closed: the store is as its file `head` says; began: a log was begun."""


class Storage(Protocol):
    """Files of a store by their names, such as `manifests/00000000000000000007.json`.

    ring: the data keys of an encrypted store, whose steps are sealed here; None for a plain one. reserved: steps of
    imports that go on. tears: whether a crash may leave a part of what was added to a log. overhead: bytes of a log
    that are as much work as one more version in it.
    """

    ring: "Keyring | None"
    reserved: set[int]
    tears: bool
    overhead: int

    @property
    def root(self) -> Path:
        """The folder. Raises `InputError` where it is none of this machine."""

    def refuse_file(self) -> None:
        """Raises `InputError` where no store can be made, since there is a file instead of a folder."""

    def make(self) -> None:
        """Makes the folders of a store, if they are not there."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""

    def read_log(self, name: str) -> bytes | None:
        """The content of a log, all of it durable when this returns; None where there is none."""

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files of a folder; 0 where there is none."""

    def names(self, folder: str) -> list[str]:
        """Names of what is finished in a folder, sorted, without the folder's own."""

    def all_names(self, folder: str) -> list[str]:
        """Names of everything in a folder, sorted, finished or not."""

    def partial(self) -> list[str]:
        """Names of everything that was begun and not finished, but what is being written."""

    def paths(self, name: str) -> list[str]:
        """Every file of a folder, such as a step, by its path in it, sorted; those that go meanwhile may be missing."""

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file, hexadecimal; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it: whole and durable, or not at all."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there, whole and durable. False where there is one, which stays."""

    def append_to(self, name: str) -> LogFile:
        """Opens a log that is there, to add to it."""

    def delete(self, name: str) -> None:
        """Takes a file or a folder away, if it is there."""

    def settle(self) -> None:
        """Waits until what was deleted will not come back."""

    def save(self, name: str, arrays: Mapping[str, np.ndarray], tenant: str) -> dict[str, str]:
        """Writes a step of arrays, durable; SHA-256 of its files by their path in it, hexadecimal, as they are stored.

        tenant: whose they are, "" for the store's.
        """

    def next_step(self, reserve: bool = False) -> int:
        """A number that no step has or had since the store was opened. reserve: until it is no longer in `reserved`."""

    def load(self, name: str, files: Iterable[str]) -> Mapping[str, np.ndarray]:
        """The arrays of a step. files: its own, by their path in it; what else is there is not looked at."""

    def lock(self) -> WriterLock:
        """Makes this process the one that writes. Raises `LockedError` where another one does."""

    def holds(self, lock: Any) -> bool:
        """Whether what `lock` returned still keeps others from writing. Never in a fork of the process that locked."""

    def newest_epoch(self) -> int:
        """The highest epoch of a log; 0 where the lock alone tells of another writer."""

    def written(self) -> bool:
        """Whether some process has the store open for writing."""

    def pin(self, data: bytes) -> Held | None:
        """Writes a pin that says `data`; it is held until it is released. None where nothing can be written."""

    def pins(self) -> dict[str, bytes]:
        """Pins that are held, by name, and what they say; takes away those of readers that are gone."""

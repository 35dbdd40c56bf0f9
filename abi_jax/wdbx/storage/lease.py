"""Who writes to a store of objects, and what its readers stand on: leases, which end unless they are renewed.

docs/wdbx-format.md, "Writers" and "Readers". Whether a commit counts never depends on a clock: a writer that was
thought dead finds the object `lock` changed, and acknowledges nothing more. Clocks decide how long others wait.
"""

import contextlib
import os
import secrets
import socket
import threading
from dataclasses import asdict, dataclass
from time import monotonic, sleep, time
from typing import Protocol
from uuid import uuid4

from abi_jax.wdbx.errors import DamagedError, FencedError, LockedError, StorageError
from abi_jax.wdbx.storage.kvstore import Objects
from abi_jax.wdbx.witness import checked_json, read_checked

LOCK = "lock"
DOMAIN = "wdbx lease"
TERM = 30.0  # seconds that a lease lasts; it is renewed at a third of it
PATIENCE = 0.5  # seconds that a writer waits for another that may be closing


@dataclass(frozen=True)
class Lease:
    """What the object `lock` says while a writer has it, or did not close the store.

    owner: in words. nonce: drawn for each renewal, so that no two leases are the same object. expires: microseconds
    since 1970.
    """

    owner: str
    nonce: str
    expires: int

    @property
    def seconds(self) -> float:
        """How long it still lasts."""
        return self.expires / 1e6 - time()


def read_lease(data: bytes | None) -> Lease | None:
    """What the object `lock` says; None where it says nothing that can be read, as after a store was closed."""
    try:
        return Lease(**read_checked(DOMAIN, LOCK, data)) if data else None
    except (DamagedError, TypeError):
        return None


class Renewed(Protocol):
    """What has to be renewed."""

    def renew(self) -> None:
        """Does it. Raises `StorageError` where it cannot be done now."""


class Keeper:
    """Renews leases in a thread, as long as there are any."""

    def __init__(self, term: float) -> None:
        self.term = term
        self._kept: list[Renewed] = []
        self._changing = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, lease: Renewed) -> None:
        """Renews a lease from here on."""
        with self._changing:
            self._kept.append(lease)
            if self._thread is None or not self._thread.is_alive():
                self._woken = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._woken,), name="wdbx-lease", daemon=True)
                self._thread.start()

    def let_go(self, lease: Renewed) -> None:
        """Renews a lease no more."""
        with self._changing:
            self._kept = [each for each in self._kept if each is not lease]
            if not self._kept:
                self._woken.set()
                self._thread = None

    def _run(self, woken: threading.Event) -> None:
        while not woken.wait(self.term / 3):
            for each in list(self._kept):
                with contextlib.suppress(StorageError):  # it is tried again while the lease lasts, and then, too
                    each.renew()


class ObjectLock:
    """The object `lock`, held by this process: a lease that is replaced under the condition that it is this one."""

    def __init__(self, objects: Objects, keeper: Keeper) -> None:
        self._objects = objects
        self._keeper = keeper
        self._process = os.getpid()
        self._changing = threading.Lock()
        self._before = b""  # what a writer that did not close the store had left
        self._generation = b""
        self._lost = False
        self._unsure: list[bytes] = []  # what it may say since, for all that is known
        self.confirmed = 0.0  # when it was last known to be held, by the clock that never goes back

    @property
    def own(self) -> bool:
        """Whether it is this process's, and not that of one that this one was forked from."""
        return self._process == os.getpid()

    def take(self) -> None:
        """Takes the lease. Raises `LockedError` where another has it and it has not ended."""
        until = monotonic() + PATIENCE
        while True:
            started = monotonic()
            data, generation = self._objects.get(LOCK)
            lease = read_lease(data)
            if lease is None or lease.seconds <= 0:
                made = self._objects.replace(LOCK, self._said(self._keeper.term), generation)
                if made is not None:
                    self._before, self._generation, self.confirmed = data or b"", made, started
                    self._keeper.keep(self)
                    return
            elif started > until:
                raise LockedError(
                    f"{self._objects.url} is open for writing in another process ({lease.owner}), or was when that "
                    f"ended: its lease ends in {lease.seconds:.0f} seconds unless it is renewed; expected one writer "
                    'at a time: open it with mode="r", or close the other'
                )
            sleep(PATIENCE / 10)

    def renew(self) -> None:
        """Makes the lease last for another term, if it is still this process's."""
        with self._changing:
            if self.own and not self._lost:
                self._write(self._said(self._keeper.term))

    def held(self, fresh: bool = False) -> bool:
        """Whether the store is still this process's to write to. fresh: asks, however short ago it was known.

        Raises `StorageError` where nobody answers.
        """
        with self._changing:
            if not self.own or self._lost:
                return False
            started = monotonic()
            if fresh or started > self.confirmed + self._keeper.term / 3:
                self._lost = not self._objects.is_still(LOCK, self._generation) and not self._found_again()
                self.confirmed = started
            return not self._lost

    def confirm(self) -> None:
        """Raises `FencedError` unless the store is still this process's; asks, however short ago it was known."""
        if not self.held(fresh=True):
            raise self.fenced()

    def lose(self, found: str) -> FencedError:
        """Something was found that another writer has done: the error to raise."""
        self._lost = True
        return FencedError(
            f"{self._objects.url} has another writer, of which {found} is; nothing more was acknowledged"
        )

    def fenced(self) -> FencedError:
        """What to raise where the store is no longer this process's."""
        return FencedError(
            f"{self._objects.url} has another writer: its lock is no longer that of this process; "
            "nothing more was acknowledged"
        )

    def release(self, closed: bool = False, began: bool = True) -> None:
        """Lets go of it. closed: the store is as its file `head` says; began: a log was begun."""
        if not self.own:
            return
        self._keeper.let_go(self)
        with self._changing, contextlib.suppress(StorageError):  # then it ends by itself
            if not self._lost:
                self._write(b"" if closed else self._said(-1.0) if began else self._before)
                self._lost = True

    def _write(self, data: bytes) -> None:
        started = monotonic()
        self._unsure.append(data)
        made = self._objects.replace(LOCK, data, self._generation)
        if made is None and self._found_again():
            made = self._objects.replace(LOCK, data, self._generation)
        self._lost = made is None
        if made is not None:
            self._generation, self.confirmed = made, started
            self._unsure.clear()

    def _found_again(self) -> bool:
        """Whether a lease that was written without an answer is the one that is there."""
        data, generation = self._objects.get(LOCK)
        if data not in self._unsure:
            return False
        self._generation = generation
        return True

    def _said(self, seconds: float) -> bytes:
        owner = f"process {self._process} on {socket.gethostname()}"
        return checked_json(DOMAIN, asdict(Lease(owner, secrets.token_hex(8), int((time() + seconds) * 1e6))))


class ObjectPin:
    """A pin: an object whose name says when it ends. It is renewed under another name."""

    def __init__(self, objects: Objects, keeper: Keeper, data: bytes) -> None:
        self._objects = objects
        self._keeper = keeper
        self._data = data
        self._process = os.getpid()
        self._changing = threading.Lock()
        self._name = ""
        self._released = False

    def write(self) -> None:
        """Writes it, and keeps it from ending."""
        self.renew()
        self._keeper.keep(self)

    def renew(self) -> None:
        """Makes it last for another term."""
        with self._changing:
            if self._released or self._process != os.getpid():
                return
            name = f"pins/{uuid4().hex}-{int((time() + self._keeper.term) * 1e6):020d}"
            before, self._name = self._name, name
            self._objects.put(name, self._data)
            if before:
                self._objects.delete([before])

    def release(self) -> None:
        """Lets go of it; in a fork, of nothing."""
        if self._process != os.getpid():
            return
        self._keeper.let_go(self)
        with self._changing, contextlib.suppress(StorageError):  # then it ends by itself
            self._released = True
            self._objects.delete([self._name])


def pin_ended(name: str) -> bool:
    """Whether the time in the name of a pin's object has passed."""
    expires = name.rpartition("-")[2]
    return expires.isdecimal() and int(expires) / 1e6 < time()

"""Commits: records written in groups, each group waited for once, then applied in order."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import time_ns
from typing import Any, Protocol

from abi_jax.errors import InputError
from abi_jax.lineage_digest import HASH
from abi_jax.wdbx.errors import FencedError, WdbxError
from abi_jax.wdbx.log.record import LONGEST, Head, Kind, Record, payload_digest
from abi_jax.wdbx.storage.operations import LogFile

SMALL = 1 << 16  # bytes that are quicker copied into one piece than written in several
LONGEST_DRAFT = LONGEST - 64  # what encryption adds must fit, too
UNCERTAIN = "a write was interrupted, and whether it is a version is known when the store is opened again"


@dataclass(frozen=True)
class Draft:
    """A version that has no number yet. tenant: whose data its payload is. columns: of rows, how many they have."""

    kind: Kind
    collection: int
    rows: int
    payload: bytes
    tenant: str = ""
    columns: int | None = None


class Seals(Protocol):
    """What encrypts and signs records."""

    def refused(self, draft: Draft) -> Exception | None:
        """Why a draft can no longer be written, None where it can."""

    def begin(self, log: str) -> None:
        """Goes on in another log file."""

    def failed(self) -> None:
        """What was sealed last was not written: its version will be another one."""

    def seal(self, head: Head, draft: Draft, previous: bytes) -> tuple[Head, bytes]:
        """A head with flags, data key and length, and the payload as it is stored. previous: the link before."""

    def sign(self, head: Head) -> bytes:
        """What stands behind the payload."""


@dataclass
class Position:
    """Where the chain is: the last version, its link and its time; and the writer's epoch."""

    version: int
    link: bytes
    time: int
    epoch: int


@dataclass
class _Waiting:
    draft: Draft
    done: bool = False
    version: int = 0
    result: Any = None
    error: Exception | None = field(default=None)


class Commits:
    """Writes records to a log file. Threads that commit at the same time share one wait for the disk.

    apply: called with every record once it is durable, in order and never twice at a time; what it returns is what
    `commit` does. fence: raises `FencedError` where another process writes to the store by now.
    """

    def __init__(
        self,
        log: LogFile,
        size: int,
        position: Position,
        apply: Callable[[Record], Any],
        fence: Callable[[], None] = lambda: None,
        seals: Seals | None = None,
    ) -> None:
        self._log = log
        self._seals = seals
        self.size = size
        self.position = position
        self._apply = apply
        self._fence = fence
        self._queue: deque[_Waiting] = deque()
        self._writing = threading.RLock()
        self._pausing = 0  # the thread that lets nobody else commit
        self._uncertain = False  # whether what was begun is a version
        self._broken = ""
        self._fenced = ""

    def commit(self, draft: Draft) -> tuple[int, Any]:
        """Makes `draft` a version; returns its number, and what applying it returned, when it is durable.

        Raises `WdbxError` where it cannot be written: then it is no version, and the next one may be. What is committed
        while `paused`, by the thread that has others wait, is the very next version.
        """
        if len(draft.payload) > LONGEST_DRAFT:
            raise InputError(f"{len(draft.payload)} bytes in one write; expected at most {LONGEST_DRAFT}: use import_")
        mine = _Waiting(draft)
        if self._pausing == threading.get_ident():
            self._write([mine])
        else:
            self._queue.append(mine)
            with self._writing:
                if not mine.done:
                    self._write([self._queue.popleft() for _ in range(len(self._queue))])
        if mine.error is not None:
            raise mine.error
        if not mine.done:
            raise WdbxError(UNCERTAIN)
        return mine.version, mine.result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Lets nobody else commit while the block runs. Raises `WdbxError` where nothing can be written any more."""
        with self._writing:
            self.check()
            before, self._pausing = self._pausing, threading.get_ident()
            try:
                yield
            finally:
                self._pausing = before

    @contextlib.contextmanager
    def must_finish(self, what: str) -> Iterator[None]:
        """Lets nothing be written any more where the block makes a version and then fails. Only while `paused`."""
        before = self.position.version
        try:
            yield
        except BaseException as error:
            if self._uncertain or self.position.version != before:
                self.give_up(f"{what} was interrupted: {error!r}")
            raise

    def give_up(self, why: str) -> None:
        """Lets nothing be written any more."""
        self._broken = self._broken or why

    def go_on_in(self, log: LogFile, size: int, name: str) -> None:
        """Writes to another file from here on. Only while `paused`."""
        self._log.close()
        self._log, self.size = log, size
        if self._seals is not None:
            self._seals.begin(name)

    def close(self) -> None:
        """Lets go of the file."""
        with self._writing:
            self._broken = self._broken or "the store is closed"
            self._log.close()

    def _write(self, group: list[_Waiting]) -> None:
        if self._seals is not None:
            for each in group:
                each.error = self._seals.refused(each.draft)
                each.done = each.error is not None
        group = [each for each in group if not each.done]
        if not group:
            return
        try:
            self.check()
            records = self._records([each.draft for each in group])
            self._append([part for record in records for part in record.parts])
            last = records[-1].head
            self.position = Position(last.version, last.link, last.time, last.epoch)
            self._uncertain = False
        except BaseException as error:
            if self._seals is not None:
                self._seals.failed()
            for each in group:
                each.done, each.error = True, error if isinstance(error, Exception) else WdbxError(UNCERTAIN)
            if not isinstance(error, Exception):
                raise
            return
        for each, record in zip(group, records, strict=True):
            each.version = record.head.version
            try:
                each.result = self._apply(Record(record.head, each.draft.payload))
            except BaseException as error:
                self.give_up(f"version {record.head.version} was written and could not be applied: {error!r}")
                if not isinstance(error, Exception):
                    raise
                each.error = error
            each.done = True

    def _records(self, drafts: list[Draft]) -> list[Record]:
        at = self.position
        version, link, now = at.version, at.link, max(at.time, time_ns() // 1000)
        made = []
        for number, draft in enumerate(drafts):
            version += 1
            head = Head(
                draft.kind,
                version,
                now,
                at.epoch,
                draft.collection,
                draft.rows,
                len(draft.payload),
                bytes(HASH),
                group=number,
            )
            payload, signature = draft.payload, b""
            if self._seals is not None:
                head, payload = self._seals.seal(head, draft, link)
            head = replace(head, digest=payload_digest(payload)).linked(link)
            if self._seals is not None:
                signature = self._seals.sign(head)
            link = head.link
            made.append(Record(head, payload, signature))
        return made

    @property
    def certain(self) -> bool:
        """Whether what is on disk is what was acknowledged: nothing failed half-way, and nobody else writes."""
        return not self._fenced and not self._broken and not self._uncertain

    def check(self) -> None:
        """Raises where nothing can be written any more: `FencedError` where another process writes to the store."""
        self.check_fence()
        broken = self._broken or (UNCERTAIN if self._uncertain else "")
        if broken:
            raise WdbxError(f"nothing can be written: {broken}; open the store again")

    def check_fence(self) -> None:
        """Raises `FencedError` where another process writes to the store. May be called while others commit."""
        if not self._fenced:
            try:
                self._fence()
            except FencedError as error:
                self._fenced = str(error)
        if self._fenced:
            raise FencedError(self._fenced)

    def _append(self, parts: list[bytes]) -> None:
        self.check()
        size = sum(map(len, parts))
        self._uncertain = True
        try:
            self._log.append(*([b"".join(parts)] if size < SMALL else parts))
        except OSError as error:
            try:
                self._log.truncate(self.size)
                self._log.sync()  # a power cut must not bring it back, behind the end that another file begins at
                self._uncertain = False
            except OSError as second:
                self._broken = f"the log could not be cut off where a write had failed: {second.strerror}"
            raise WdbxError(f"nothing was written: {error.strerror}") from error
        try:
            self._log.sync()
        except OSError as error:
            # What the disk has after a failed sync is unknown, and a second sync that succeeds says nothing of it.
            self._broken = f"the log could not be brought to disk: {error.strerror}"
            raise WdbxError(
                f"{self._broken}; whether this was written is known when the store is opened again"
            ) from error
        self.size += size
        self.check_fence()

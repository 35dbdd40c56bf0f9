"""The thread that owns an engine: others hand it jobs, it hands back events."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

from abi_jax.serve.engine.seam import Engine, Job, Usage
from abi_jax.serve.scheduler import Event, Load, Scheduler, Ticket

LOG = logging.getLogger("abi_jax.serve")
STALLED_AFTER = 10.0  # seconds without a finished step while there is work
_T = TypeVar("_T")
Deliver = Callable[[list[tuple[Ticket, Event]]], None]


class EngineStopped(RuntimeError):
    """No more jobs are taken: the engine drains, was stopped, or failed."""


class QueueFull(RuntimeError):
    """As many jobs wait as may, of all or of one share."""


class Worker:
    """Runs a scheduler until it is stopped.

    `deliver` is called on the worker's thread with the events of a step; it must be quick and must not raise.
    """

    def __init__(
        self,
        engine: Engine[Any],
        deliver: Deliver,
        *,
        max_waiting: int = 256,
    ) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._scheduler = Scheduler(engine)
        self._deliver = deliver
        self._wake = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changes: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = self._stopping = False
        self._error: str | None = None
        self._beat = monotonic()
        self._load = Load(0, 0, 0)
        self._usage = engine.usage()
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """Queues a job; see `submit_all`."""
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job], whose: str = "") -> list[Ticket]:
        """Queues all jobs or none.

        whose: with whom they share places of the queue. Of a share no more may wait than places stay free, but for one
        job, which needs a place alone; so there is always one for who has none. Empty: all places are theirs.

        Raises `InputError` for one that can never be done, `QueueFull` or `EngineStopped`.
        """
        for job in jobs:
            self.engine.check(job)
        tickets = [Ticket(job, whose) for job in jobs]
        with self._wake:
            if self._error is not None:
                raise EngineStopped(f"the engine failed: {self._error}")
            if self._closing:
                raise EngineStopped("the server is shutting down")
            waiting = len(self._arrived) + self._load.waiting
            free = self.max_waiting - waiting - len(tickets)
            if free < 0:
                more = f"and {len(tickets)} more came"
                raise QueueFull(f"{waiting} requests are waiting already, {more}; expected at most {self.max_waiting}")
            own = self._load.shares.get(whose, 0) + sum(ticket.whose == whose for ticket in self._arrived)
            if whose and own + len(tickets) > max(1, free):
                more = f"and {len(tickets)} more came; expected no more than stay free, {max(1, free)}"
                raise QueueFull(f"{own} requests of {whose} are waiting already, {more}")
            self._arrived.extend(tickets)
            self._wake.notify()
        return tickets

    def cancel(self, ticket: Ticket) -> None:
        """Ends a ticket within a step; one that has ended stays as it is."""
        with self._wake:
            self._cancelled.append(ticket)
            self._wake.notify()

    def call(self, what: Callable[[], _T], *, between_answers: bool = False) -> "Future[_T]":
        """Runs `what` on the engine's thread between two steps.

        between_answers: once all answers that have begun are finished; those that wait begin after it.
        """
        future: Future[_T] = Future()
        with self._wake:
            if self._stopping or self._error is not None or not self._thread.is_alive():
                future.set_exception(EngineStopped(self._error or "the engine has stopped"))
                return future
            (self._changes if between_answers else self._calls).append((what, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Takes no more jobs; those that are there are finished."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until all jobs are done after `close`; False if they are not in time."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def stop(self, timeout: float | None = 10.0) -> bool:
        """Cancels all jobs and ends the thread; False if it does not end in time."""
        with self._wake:
            self._closing = self._stopping = True
            self._wake.notify()
        return self.join(timeout) if self._thread.is_alive() else True

    @property
    def load(self) -> Load:
        """What there was to do after the last step, with what came since."""
        with self._wake:  # who is taken on is moved from one to the other
            return replace(self._load, waiting=self._load.waiting + len(self._arrived))

    @property
    def usage(self) -> Usage:
        """How full the cache was after the last step."""
        return self._usage

    @property
    def failed(self) -> str | None:
        """Why no step will ever complete again; None where the thread was not started, or was stopped."""
        if self._error is not None:
            return self._error
        dead = self._thread.ident is not None and not self._thread.is_alive()
        return "its thread has died" if dead and not self._stopping else None

    @property
    def failure(self) -> str | None:
        """Why no more steps complete, or None while they do, or there are none to do."""
        if failed := self.failed:
            return failed
        silent = monotonic() - self._beat
        if silent > STALLED_AFTER and self._thread.is_alive():
            return f"no step has finished for {silent:.0f} seconds"
        return None

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            with self._wake:
                self._stopping = True
            self._refuse_calls("the engine has stopped")
        except BaseException as error:  # whatever it is, nobody may wait for ever
            LOG.exception("the engine failed")
            self._fail(f"{type(error).__name__}: {error}")

    @property
    def _asked(self) -> bool:
        return bool(self._calls or self._changes)

    def _turn(self) -> bool:
        scheduler = self._scheduler
        with self._wake:
            while scheduler.idle and not (
                self._arrived or self._cancelled or self._calls or self._changes or self._closing
            ):
                self._beat = monotonic()
                self._wake.wait(1.0)
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            calls, self._calls = self._calls, deque()
            stopping, closing, changing = self._stopping, self._closing, bool(self._changes)
            for ticket in arrived:
                scheduler.submit(ticket)
            self._load = scheduler.load()
        for what, future in calls:
            _perform(what, future)
        for ticket in cancelled:
            scheduler.cancel(ticket)
        scheduler.paused = changing
        if changing and scheduler.quiet:
            self._change()
        if stopping:
            self._refuse_calls("the engine has stopped")
            self._deliver(scheduler.fail("the server is shutting down"))
            return False
        if events := scheduler.step():
            self._deliver(events)
        self._beat = monotonic()
        self.steps += 1
        self._load, self._usage = scheduler.load(), self.engine.usage()
        return not (closing and scheduler.idle and not self._arrived and not self._changes)

    def _fail(self, error: str) -> None:
        with self._wake:
            self._error = error
            for ticket in self._arrived:
                self._scheduler.submit(ticket)
            self._arrived.clear()
            self._load, self._usage = Load(0, 0, 0), replace(self._usage, used=0, cached=0)
        self._refuse_calls(f"the engine failed: {error}")
        self._deliver(self._scheduler.fail(f"the engine failed: {error}"))

    def _change(self) -> None:
        with self._wake:
            changes, self._changes = self._changes, deque()
        for what, future in changes:
            _perform(what, future)
        self._scheduler.paused = False

    def _refuse_calls(self, why: str) -> None:
        with self._wake:
            calls = [*self._calls, *self._changes]
            self._calls.clear()
            self._changes.clear()
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineStopped(why))


def _perform(what: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(what())
    except Exception as error:
        future.set_exception(error)

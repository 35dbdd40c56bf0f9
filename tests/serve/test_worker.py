"""The thread that owns an engine."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from abi_jax.errors import InputError
from abi_jax.serve import worker as module
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.scheduler import Ended, Event, Ticket, Token
from abi_jax.serve.worker import EngineStopped, QueueFull, Worker
from tests.serve.http.serving import ENDLESS, LASTING, PATIENCE, until
from tests.serve.jobs import job, said

pytestmark = pytest.mark.smoke


class Heard:
    """What a worker delivered."""

    def __init__(self) -> None:
        self.events: list[tuple[Ticket, Event]] = []
        self._changed = threading.Condition()

    def __call__(self, events: list[tuple[Ticket, Event]]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def wait(self, what: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE)

    def end(self, ticket: Ticket) -> tuple[list[int], str | None]:
        self.wait(lambda: any(of is ticket and isinstance(e, Ended) for of, e in self.events))
        return said(self.events, ticket)

    def count(self, ticket: Ticket) -> int:
        return sum(of is ticket and isinstance(e, Token) for of, e in self.events)


@contextmanager
def running(engine: FakeEngine, max_waiting: int = 256) -> Iterator[tuple[Worker, Heard]]:
    heard = Heard()
    worker = Worker(engine, heard, max_waiting=max_waiting)
    worker.start()
    try:
        yield worker, heard
    finally:
        engine.hold.clear()
        worker.stop()


def test_jobs_of_many_threads_are_all_answered() -> None:
    with running(FakeEngine(slots=4)) as (worker, heard):
        tickets: list[Ticket] = []
        threads = [threading.Thread(target=lambda i=i: tickets.append(worker.submit(job(seed=i)))) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {heard.end(t)[1] for t in tickets} == {"length"}


def test_a_job_that_can_never_be_done_is_refused_where_it_is_asked() -> None:
    with running(FakeEngine()) as (worker, _), pytest.raises(InputError, match="prompt of 600 tokens"):
        worker.submit(job(600))


def test_a_full_queue_refuses_and_cancelling_makes_room() -> None:
    with running(FakeEngine(slots=1, **LASTING), max_waiting=2) as (worker, heard):
        first = worker.submit(job(max_tokens=ENDLESS))
        heard.wait(lambda: heard.count(first) > 0)
        waiting = [worker.submit(job(seed=i)) for i in (1, 2)]
        with pytest.raises(QueueFull, match="2 requests"):
            worker.submit(job(seed=3))
        assert worker.load.waiting == 2
        worker.cancel(waiting[0])
        assert heard.end(waiting[0]) == ([], "cancelled")
        last = worker.submit(job(seed=4, max_tokens=1))
        worker.cancel(first)
        assert heard.end(last)[1] == "length"


def test_of_a_share_no_more_wait_than_places_stay_free() -> None:
    engine = FakeEngine(slots=1, **LASTING)
    with running(engine, max_waiting=16) as (worker, heard):

        def ask(count: int, whose: str = "") -> list[Ticket]:
            return worker.submit_all([job(seed=seed, max_tokens=1) for seed in range(count)], whose)

        speaks = worker.submit(job(max_tokens=ENDLESS))
        heard.wait(lambda: heard.count(speaks) > 0)
        engine.hold.set()
        with pytest.raises(QueueFull, match="0 requests of a are waiting already, and 9 more came"):
            ask(9, "a")
        tickets = [*ask(6, "a"), *ask(2, "a")]
        with pytest.raises(QueueFull, match=r"8 requests of a are waiting already, and 1 more came; .* 7"):
            ask(1, "a")
        tickets += [*ask(4, "b"), *ask(2, "c"), *ask(1, "d")]  # each that comes takes half of what the others left
        for whose in "abcd":
            with pytest.raises(QueueFull, match=f"requests of {whose}"):
                ask(1, whose)
        tickets += ask(1, "e")  # the last place is for who has none
        with pytest.raises(QueueFull, match="16 requests are waiting already, and 1 more came; expected at most 16"):
            ask(1, "f")
        for ticket in (speaks, *tickets[:7]):
            worker.cancel(ticket)
        engine.hold.clear()
        assert {heard.end(ticket)[1] for ticket in tickets} == {"cancelled", "length"}
        until(lambda: worker.load.shares == {})
        assert [heard.end(ticket)[1] for ticket in ask(8, "a")] == ["length"] * 8
        assert [heard.end(ticket)[1] for ticket in ask(16)] == ["length"] * 16  # of nobody's all places are


def test_closing_finishes_what_there_is_and_refuses_what_is_new() -> None:
    with running(FakeEngine(slots=1, step_seconds=0.005)) as (worker, heard):
        tickets = [worker.submit(job(seed=i)) for i in range(4)]
        worker.close()
        with pytest.raises(EngineStopped, match="shutting down"):
            worker.submit(job())
        assert worker.join(PATIENCE)
        assert [heard.end(t)[1] for t in tickets] == ["length"] * 4
        assert worker.failed is None


def test_an_engine_that_breaks_ends_every_job_and_is_not_healthy() -> None:
    engine = FakeEngine(slots=1, **LASTING)
    with running(engine) as (worker, heard):
        assert worker.failure is None
        tickets = [worker.submit(job(max_tokens=ENDLESS)), worker.submit(job())]
        heard.wait(lambda: heard.count(tickets[0]) > 0)
        engine.broken = "no memory"
        assert [heard.end(t)[1] for t in tickets] == ["error"] * 2
        assert "no memory" in (worker.failure or "")
        with pytest.raises(EngineStopped, match="no memory"):
            worker.submit(job())
        with pytest.raises(EngineStopped, match="no memory"):
            worker.call(lambda: 1).result(PATIENCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_ends_the_thread_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(slots=1)
    with running(engine) as (worker, heard):
        monkeypatch.setattr(engine, "decode", lambda: (_ for _ in ()).throw(SystemExit("the driver has left")))
        assert heard.end(worker.submit(job())) == ([], "error")
        assert worker.failed == worker.failure == "SystemExit: the driver has left"
        assert worker.load.waiting == worker.load.reading == worker.load.speaking == worker.usage.used == 0
    with running(engine := FakeEngine(slots=1)) as (worker, _):

        def die(*_: object) -> None:
            raise SystemExit

        monkeypatch.setattr(worker, "_fail", die)
        monkeypatch.setattr(engine, "decode", die)
        worker.submit(job())
        assert worker.join(PATIENCE)
        assert worker.failed == worker.failure == "its thread has died"


def test_an_engine_that_hangs_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    engine = FakeEngine()
    with running(engine) as (worker, _):
        engine.hold.set()
        worker.submit(job())
        until(lambda: engine.works)
        found = []
        for seconds in (module.STALLED_AFTER, 1):
            now += seconds
            found.append(worker.failure)
        assert found == [None, "no step has finished for 11 seconds"]
        engine.hold.clear()
        until(lambda: worker.failure is None)


def test_calls_run_between_two_steps_and_give_what_they_return_or_raise() -> None:
    with running(FakeEngine()) as (worker, _):
        assert worker.call(lambda: threading.current_thread().name).result(PATIENCE) == "engine"
        with pytest.raises(ZeroDivisionError):
            worker.call(lambda: 1 // 0).result(PATIENCE)
        assert worker.failure is None
    with pytest.raises(EngineStopped):
        worker.call(lambda: 1).result(PATIENCE)


def test_stopping_cancels_what_there_is() -> None:
    with running(FakeEngine(slots=1, **LASTING)) as (worker, heard):
        tickets = [worker.submit(job(max_tokens=ENDLESS)), worker.submit(job())]
        heard.wait(lambda: heard.count(tickets[0]) > 0)
        assert worker.stop(PATIENCE)
        assert [heard.end(t)[1] for t in tickets] == ["error"] * 2

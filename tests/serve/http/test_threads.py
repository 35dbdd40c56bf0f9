"""Threads that callers take in turn."""

import threading
from functools import partial

import pytest

from abi_jax.serve.http.threads import COUNT, FairThreads
from tests.serve.http.serving import PATIENCE

pytestmark = pytest.mark.smoke


def test_who_asks_for_much_waits_behind_himself() -> None:
    threads, may, done = FairThreads("fair"), [threading.Event() for _ in range(COUNT)], list[str]()
    began = threading.Barrier(COUNT + 1)

    def hold(until: threading.Event) -> bool:
        began.wait(PATIENCE)
        return until.wait(PATIENCE)

    held = [threads.submit("much", partial(hold, each)) for each in may]
    began.wait(PATIENCE)
    much = [threads.submit("much", partial(done.append, f"much {i}")) for i in range(3)]
    little = [threads.submit(whose, partial(done.append, whose)) for whose in ("little", "other")]
    may[0].set()  # one thread does all the rest
    for future in (*much, *little):
        future.result(PATIENCE)
    assert done == ["much 0", "little", "other", "much 1", "much 2"]
    for each in may:
        each.set()
    assert all(future.result(PATIENCE) for future in held)


def test_what_is_not_wanted_any_more_is_left_out_and_what_fails_is_told() -> None:
    threads, may, done = FairThreads("fair"), threading.Event(), list[str]()
    held = [threads.submit("one", lambda: may.wait(PATIENCE)) for _ in range(COUNT)]
    unwanted, wrong = threads.submit("one", lambda: done.append("unwanted")), threads.submit("one", lambda: 1 / 0)
    assert unwanted.cancel()
    may.set()
    with pytest.raises(ZeroDivisionError):
        wrong.result(PATIENCE)
    assert all(future.result(PATIENCE) for future in held) and done == []

"""Threads that callers take in turn."""

import threading
from functools import partial

import pytest

from abi_jax.serve.http.threads import COUNT, FairThreads

pytestmark = pytest.mark.smoke


def test_who_asks_for_much_waits_behind_himself() -> None:
    threads, may, done = FairThreads("fair"), [threading.Event() for _ in range(COUNT)], list[str]()
    began = threading.Barrier(COUNT + 1)

    def hold(until: threading.Event) -> bool:
        began.wait(20)
        return until.wait(20)

    held = [threads.submit("much", partial(hold, each)) for each in may]
    began.wait(20)
    much = [threads.submit("much", partial(done.append, f"much {i}")) for i in range(3)]
    little = [threads.submit(whose, partial(done.append, whose)) for whose in ("little", "other")]
    may[0].set()  # one thread does all the rest
    for future in (*much, *little):
        future.result(20)
    assert done == ["much 0", "little", "other", "much 1", "much 2"]
    for each in may:
        each.set()
    assert all(future.result(20) for future in held)


def test_what_is_not_wanted_any_more_is_left_out_and_what_fails_is_told() -> None:
    threads, may, done = FairThreads("fair"), threading.Event(), list[str]()
    held = [threads.submit("one", lambda: may.wait(20)) for _ in range(COUNT)]
    unwanted, wrong = threads.submit("one", lambda: done.append("unwanted")), threads.submit("one", lambda: 1 / 0)
    assert unwanted.cancel()
    may.set()
    with pytest.raises(ZeroDivisionError):
        wrong.result(20)
    assert all(future.result(20) for future in held) and done == []

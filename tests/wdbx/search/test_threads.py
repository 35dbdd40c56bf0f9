"""Searches wait for no work of others: neither for what takes long behind them, nor for room among threads."""

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from abi_jax.wdbx.search import index, threads
from abi_jax.wdbx.search.codes import CodesMaker


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four of them, whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    threads._pool.cache_clear()
    yield
    threads._pool.cache_clear()


def names(count: int) -> list[str]:
    """The threads that so many tasks ran in, no two of them at once in one."""
    together = threading.Barrier(count, timeout=100)
    made: list[str] = []

    def work() -> None:
        together.wait()
        made.append(threading.current_thread().name.split("_")[0])

    threads.run([work] * count)
    return sorted(made)


def test_builds_have_threads_of_their_own(cores: None) -> None:
    assert threads.workers() == 4
    assert names(4) == ["MainThread", "wdbx-search", "wdbx-search", "wdbx-search"]
    with threads.behind_searches():
        assert threads.workers() == 2
        assert names(2) == ["MainThread", "wdbx-build"]
    assert threads.workers() == 4


def test_lists_are_made_there(cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(index, "make_index", lambda *args: seen.append(threads.workers()))
    maker = index.IndexMaker("ip", np.zeros((4, 2), np.float32))
    maker.ask(lambda: CodesMaker("ip", 2, np.dtype(np.float32)).of(np.zeros((4, 2), np.float32)), None, wait=True)
    assert seen == [2]


def test_what_no_thread_has_begun_is_done_at_once(cores: None) -> None:
    """While all threads are busy, with a share of this search, too, the rest of it is done by the one who asks."""
    busy, go = threading.Barrier(4, timeout=100), threading.Event()

    def held() -> None:
        busy.wait()
        go.wait(100)

    pool = threads._pool(os.getpid(), False)
    others = [pool.submit(held) for _ in range(3)]
    busy.wait()
    done: list[tuple[int, str]] = []
    threads.run([partial(lambda i: done.append((i, threading.current_thread().name)), i) for i in range(4)])
    assert not go.is_set()
    assert sorted(done) == [(i, "MainThread") for i in range(4)]
    go.set()
    for each in others:
        each.result()


def test_shares_cover_all_rows(cores: None) -> None:
    covered: list[tuple[int, int]] = []
    threads.shares(10, lambda first, last: covered.append((first, last)), smallest=3)
    assert sorted(covered) == [(0, 3), (3, 6), (6, 10)]


def test_what_is_given_up_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread ends at its next turn, and the process waits for it; what else runs goes on."""
    monkeypatch.setattr(threads, "_ending", threading.Event())
    began = threading.Event()

    def work() -> None:
        threads.check_exit()
        with contextlib.suppress(SystemExit), threads.given_up_at_exit():
            while True:
                began.set()
                threads.check_exit()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert began.wait(100) and thread.is_alive()
    threads._end()
    assert not thread.is_alive() and thread not in threads._given_up
    threads.check_exit()

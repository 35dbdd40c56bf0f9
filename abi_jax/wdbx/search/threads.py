"""Threads for compiled loops, which do not hold the interpreter: those of searches, and others of work behind them."""

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial

SMALLEST = 4096  # rows that are worth a thread


class _Local(threading.local):
    behind = False


_local = _Local()
_ending = threading.Event()
_given_up: set[threading.Thread] = set()


@contextmanager
def given_up_at_exit() -> Iterator[None]:
    """What this thread does meanwhile is given up when the process ends, at the next `check_exit`.

    A daemon thread that is in the midst of a program of JAX when the interpreter ends would abort the process.
    """
    thread = threading.current_thread()
    _given_up.add(thread)
    try:
        yield
    finally:
        _given_up.discard(thread)


def check_exit() -> None:
    """Ends this thread where the process ends and what it does is to be given up."""
    if _ending.is_set() and threading.current_thread() in _given_up:
        raise SystemExit


@atexit.register
def _end() -> None:
    _ending.set()
    for thread in list(_given_up):
        if thread is not threading.current_thread():
            thread.join()


@contextmanager
def behind_searches() -> Iterator[None]:
    """What this thread runs meanwhile has half of the cores, and threads of its own."""
    before, _local.behind = _local.behind, True
    try:
        yield
    finally:
        _local.behind = before


def workers() -> int:
    """How many cores this thread may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2) if _local.behind else cores


@cache
def _pool(process: int, behind: bool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, workers() - 1), "wdbx-build" if behind else "wdbx-search")


def run(tasks: list[Callable[[], None]]) -> None:
    """Runs tasks, all at once, the last in this thread, and those, too, that no other thread has begun by then."""
    waiting = [_pool(os.getpid(), _local.behind).submit(task) for task in tasks[:-1]]
    for task in tasks[-1:]:
        task()
    for task, each in reversed(list(zip(tasks, waiting, strict=False))):
        if each.cancel():
            task()
        else:
            each.result()


def shares(rows: int, work: Callable[[int, int], None], smallest: int = SMALLEST) -> None:
    """Calls `work(first, last)` for as many parts of `rows` rows as there are cores and they are worth."""
    if rows < 2 * smallest:
        work(0, rows)
        return
    count = max(1, min(workers(), rows // smallest))
    edges = [rows * i // count for i in range(count + 1)]
    run([partial(work, edges[i], edges[i + 1]) for i in range(count)])

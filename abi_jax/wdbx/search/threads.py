"""Threads for compiled loops, which do not hold the interpreter."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

SMALLEST = 4096  # rows that are worth a thread


def workers() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, workers() - 1), "wdbx-search")


def run(tasks: list[Callable[[], None]]) -> None:
    """Runs tasks, all at once, the last in this thread."""
    waiting = [_pool(os.getpid()).submit(task) for task in tasks[:-1]]
    for task in tasks[-1:]:
        task()
    for each in waiting:
        each.result()


def shares(rows: int, work: Callable[[int, int], None], smallest: int = SMALLEST) -> None:
    """Calls `work(first, last)` for as many parts of `rows` rows as there are cores and they are worth."""
    count = max(1, min(workers(), rows // smallest))
    edges = [rows * i // count for i in range(count + 1)]
    run([partial(work, edges[i], edges[i + 1]) for i in range(count)])

"""What would keep the event loop, on threads of three kinds, so that what takes long holds up nothing but its like.

Rendering and tokenising take milliseconds, and every answer waits for them; the vector store and encoders may take
seconds. Of each kind callers take turns: who asks for much waits behind himself, and others for one piece of it.
"""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")
_Work = tuple["Future[Any]", Callable[[], Any]]
COUNT = 4  # of each kind
CALLER = ContextVar("CALLER", default="")  # whose the request is that runs: of `Principal.share`


class FairThreads:
    """Threads that take callers in turn, and what each of them asks for in its order."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(COUNT, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Work]] = OrderedDict()  # by caller, who is next first

    def submit(self, whose: str, what: Callable[[], _T]) -> "Future[_T]":
        """Does something when its turn comes."""
        future: Future[_T] = Future()
        with self._lock:
            self._waiting.setdefault(whose, deque()).append((future, what))
        self._threads.submit(self._next)  # as many as there is work, whosever
        return future

    def _next(self) -> None:
        with self._lock:
            whose, works = self._waiting.popitem(last=False)
            future, what = works.popleft()
            if works:
                self._waiting[whose] = works
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(what())
        except BaseException as error:
            future.set_exception(error)


PROMPTS, ENCODING, STORE = map(FairThreads, ("prompts", "encoding", "store"))


async def in_thread(what: Callable[..., _T], *arguments: Any, threads: FairThreads = PROMPTS) -> _T:
    """Runs something when it is the turn of whom the request is of."""
    return await asyncio.wrap_future(threads.submit(CALLER.get(), partial(what, *arguments)))

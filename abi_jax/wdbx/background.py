"""Work without being asked, such as sealing: when the log has grown, or when nobody has written for a while."""

import logging
import threading
from collections.abc import Callable
from time import monotonic

SEAL_BYTES = 64 << 20  # of a log
IDLE_SECONDS = 2.0
RETRY_SECONDS = 30.0

logger = logging.getLogger("abi_jax.wdbx")


class Background:
    """Calls `work` in a thread of its own, when there is much of it, or when nobody has written for a while.

    pending: how much there is, in bytes of the log; 0 for none. What goes wrong is logged and tried again later.
    """

    def __init__(self, work: Callable[[], object], pending: Callable[[], int], what: str = "sealing") -> None:
        self._work = work
        self._pending = pending
        self._what = what
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._last = monotonic()
        self._thread = threading.Thread(target=self._run, name=f"wdbx-{what}", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """Tells that a version was written."""
        self._last = monotonic()
        self._woken.set()

    def stop(self, wait: bool = True) -> None:
        """Ends the thread. wait: for work that is going on; else that ends some time later."""
        self._stopping.set()
        self._woken.set()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait()
            self._woken.clear()
            while not self._stopping.is_set() and self._pending() and not self._due():
                self._woken.wait(IDLE_SECONDS / 4)
                self._woken.clear()
            if self._stopping.is_set() or not self._pending():
                continue
            try:
                self._work()
            except Exception as error:
                if self._stopping.is_set():
                    return
                logger.warning("%s failed, and is tried again in %d seconds: %s", self._what, RETRY_SECONDS, error)
                self._stopping.wait(RETRY_SECONDS)
                self._woken.set()

    def _due(self) -> bool:
        return self._pending() >= SEAL_BYTES or monotonic() >= self._last + IDLE_SECONDS

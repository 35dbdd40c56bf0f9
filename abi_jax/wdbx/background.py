"""Sealing without being asked: when the log has grown, or when nobody has written for a while."""

import logging
import threading
from collections.abc import Callable
from time import monotonic

SEAL_BYTES = 64 << 20  # of a log
IDLE_SECONDS = 2.0
RETRY_SECONDS = 30.0

logger = logging.getLogger("abi_jax.wdbx")


class Background:
    """Calls `seal` in a thread of its own.

    pending: bytes of the log that are not sealed. What goes wrong is logged and tried again later: the log still has
    everything.
    """

    def __init__(self, seal: Callable[[], None], pending: Callable[[], int]) -> None:
        self._seal = seal
        self._pending = pending
        self._woken = threading.Event()
        self._stopping = False
        self._last = monotonic()
        self._thread = threading.Thread(target=self._run, name="wdbx-seal", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """Tells that a version was written."""
        self._last = monotonic()
        self._woken.set()

    def stop(self) -> None:
        """Ends the thread; waits for a sealing that is going on."""
        self._stopping = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait()
            self._woken.clear()
            while not self._stopping and self._pending() and not self._due():
                self._woken.wait(IDLE_SECONDS / 4)
                self._woken.clear()
            if self._stopping or not self._pending():
                continue
            try:
                self._seal()
            except Exception as error:
                logger.warning("sealing failed, and is tried again in %d seconds: %s", RETRY_SECONDS, error)
                self._pause(RETRY_SECONDS)
                self._woken.set()

    def _due(self) -> bool:
        return self._pending() >= SEAL_BYTES or monotonic() >= self._last + IDLE_SECONDS

    def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while not self._stopping and monotonic() < until:
            threading.Event().wait(0.1)

"""Pre-emption: SIGTERM asks a run to save and stop, and it does so after the step that it is in."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Catches SIGTERM while it is entered.

    Of several processes any one may get the signal: JAX's preemption service, which `jax.distributed` starts, has
    them agree on the step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def reached(self, step: int) -> bool:
        """Whether `step` is the one to stop after; every process asks after every step."""
        return self._asked or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __enter__(self) -> "Preemption":
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

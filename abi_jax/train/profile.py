"""A trace of a few steps, for TensorBoard's profile page, XProf or Perfetto."""

from pathlib import Path

import jax

SKIPPED, TRACED = 3, 3


class Profile:
    """Traces `TRACED` steps of a run, after the `SKIPPED` in which programs are compiled and caches fill."""

    def __init__(self, folder: Path | None, start: int) -> None:
        """Without a folder it does nothing. start: the step the run begins after."""
        self._folder, self._first = folder, start + SKIPPED
        self._running = False

    def before(self, done: int) -> None:
        """Called when `done` steps are done and the next is to begin."""
        if self._folder is not None and done == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, done: int, result: object) -> None:
        """Called when step `done` was started, with what it computes."""
        if self._running and done == self._first + TRACED:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

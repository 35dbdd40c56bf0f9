"""What each of several processes hashed, as files in a folder that all of them see.

Not by collectives, which would race with those of training.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from abi_jax.errors import InputError

POLL_SECONDS = 0.02


class Shares:
    """The `Snapshot.leaves` of every process. patience: seconds to wait for the next one."""

    def __init__(self, folder: Path, patience: float = 600.0) -> None:
        self._folder, self._patience = folder, patience

    def put(self, leaves: Mapping[str, np.ndarray]) -> None:
        """Hands in this process's."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{jax.process_index()}.partial.npz"
        np.savez(partial, allow_pickle=False, **leaves)
        partial.replace(self._folder / f"{jax.process_index()}.npz")

    def fail(self, reason: str) -> None:
        """Says that this process has none to hand in, so that nobody waits for it."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            told = self._folder / f"{jax.process_index()}.reason"
            told.touch()  # needs no room for content, where the disk is full
            try:
                told.write_text(reason, encoding="utf-8")
            finally:
                told.replace(told.with_suffix(".failed"))  # who waits for it reads it as soon as it is there

    def get(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields each process's, one at a time. Raises `InputError` that names one that failed or did not come."""
        for process in range(jax.process_count()):
            with np.load(self._await(process)) as share:
                yield {path: share[path] for path in share.files}

    def remove(self) -> None:
        """Removes what was handed in."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await(self, process: int) -> Path:
        share, deadline = self._folder / f"{process}.npz", time.monotonic() + self._patience
        while not share.is_file():
            for failed in self._folder.glob("*.failed"):
                reason = failed.read_text(encoding="utf-8") or "its disk may be full"
                raise InputError(f"process {failed.stem} could not hand in its digests: {reason}")
            if time.monotonic() > deadline:
                raise InputError(
                    f"process {process} handed in no digests within {self._patience:g} s; expected {share}, in a "
                    "folder that every process sees"
                )
            time.sleep(POLL_SECONDS)
        return share

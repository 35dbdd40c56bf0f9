"""Whether a writer is still the one that writes. docs/wdbx-format.md, "Writers"."""

from abi_jax.wdbx.errors import FencedError
from abi_jax.wdbx.storage.base import Storage, WriterLock


class Fence:
    """Asked between bringing a commit to disk and acknowledging it.

    Whoever takes a store over holds the file `lock` before it reads the log. So where the lock is still this process's
    after a commit was brought to disk, the next writer will find that commit.
    """

    def __init__(self, storage: Storage, lock: WriterLock, epoch: int) -> None:
        self._storage = storage
        self._lock = lock
        self._epoch = epoch

    def check(self) -> None:
        """Raises `FencedError` where another process has taken the store over."""
        if not self._storage.holds(self._lock):
            raise FencedError(
                f"{self._storage} has another writer: its lock is no longer that of epoch {self._epoch}; "
                "nothing more was acknowledged"
            )
        newest = self._storage.newest_epoch()
        if newest > self._epoch:
            raise FencedError(
                f"{self._storage} has another writer, of epoch {newest} after this one's {self._epoch}; "
                "nothing more was acknowledged"
            )

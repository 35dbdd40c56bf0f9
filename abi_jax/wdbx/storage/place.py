"""Where a store is, by its path."""

from pathlib import Path

from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.local import LocalStorage


def open_storage(where: str | Path) -> Storage:
    """The storage at a path. Nothing is read or written yet."""
    return LocalStorage(Path(where))

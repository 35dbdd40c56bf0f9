"""WDBX: a vector store that is versioned, chained and durable, and lives where the model does."""

from abi_jax.wdbx.collection import CollectionHandle as Collection
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.database import open_store as open
from abi_jax.wdbx.errors import DamagedError, FencedError, LockedError, NoKeyError, WdbxError
from abi_jax.wdbx.snapshot import Snapshot
from abi_jax.wdbx.view import Hit, Row, View

__all__ = [
    "Collection",
    "DamagedError",
    "Database",
    "FencedError",
    "Hit",
    "LockedError",
    "NoKeyError",
    "Row",
    "Snapshot",
    "View",
    "WdbxError",
    "open",
]

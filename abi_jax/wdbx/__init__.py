"""WDBX: a vector store that is versioned, chained and durable, and lives where the model does."""

from abi_jax.wdbx.client import Client
from abi_jax.wdbx.collection import CollectionHandle as Collection
from abi_jax.wdbx.crypto.master import KeyService
from abi_jax.wdbx.crypto.master import new_master as new_key
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.database import open_store as open
from abi_jax.wdbx.errors import (
    DamagedError,
    FencedError,
    LockedError,
    NoCollectionError,
    NoKeyError,
    ProofError,
    WdbxError,
)
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.hits import Hit
from abi_jax.wdbx.proof.check import Proven, check_proof
from abi_jax.wdbx.proof.form import Proof, read_proof
from abi_jax.wdbx.snapshot import Snapshot
from abi_jax.wdbx.stats import CollectionStats, Stats
from abi_jax.wdbx.transfer.backup import Copied, restore
from abi_jax.wdbx.verify import verify_store as verify
from abi_jax.wdbx.view import Row, View

__all__ = [
    "Client",
    "Collection",
    "CollectionStats",
    "Copied",
    "DamagedError",
    "Database",
    "FencedError",
    "Finding",
    "Hit",
    "KeyService",
    "LockedError",
    "NoCollectionError",
    "NoKeyError",
    "Proof",
    "ProofError",
    "Proven",
    "Row",
    "Snapshot",
    "Stats",
    "View",
    "WdbxError",
    "check_proof",
    "new_key",
    "open",
    "read_proof",
    "restore",
    "verify",
]

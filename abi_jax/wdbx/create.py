"""A store begins: a folder, perhaps keys, the first log, and the file that says what it is."""

import contextlib
from datetime import UTC, datetime
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.master import MasterKey
from abi_jax.wdbx.crypto.signatures import public_text
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.load import ENCRYPTION, STORE_FILE, first_log
from abi_jax.wdbx.manifest import FORMAT_VERSION
from abi_jax.wdbx.storage.base import FOLDERS, Storage
from abi_jax.wdbx.witness import checked_json

KNOWN = frozenset({*FOLDERS, "lock", KEYS_FILE})


def create_store(storage: Storage, master: MasterKey | None, signer: Ed25519PrivateKey | None) -> None:
    """Writes what an empty store has. master: of an encrypted one. signer: whose signatures it takes, and no others."""
    store = uuid4().bytes
    head = first_log(store)
    if master is not None:
        Keyring.create(storage, store, master)
    storage.put(f"log/{head.name}", head.encode())
    said = {
        "format": "wdbx",
        "format_version": FORMAT_VERSION,
        "store": store.hex(),
        "created": int(datetime.now(UTC).timestamp() * 1e6),
        "encryption": None if master is None else ENCRYPTION,
        "public_keys": [] if signer is None else [public_text(signer)],
    }
    storage.put(STORE_FILE, checked_json("wdbx store", said))


def refuse_other_folder(storage: Storage) -> None:
    """Raises `InputError` where a new store would be made in a folder that holds something else."""
    with contextlib.suppress(FileNotFoundError):
        storage.refuse_file()
        strange = [name for name in storage.names("") if name not in KNOWN]
        if strange:
            raise InputError(f"{storage} is not empty and not a WDBX store: it has {strange[0]}; expected another path")
        if storage.read(KEYS_FILE) is not None and (storage.names("manifests") or storage.names("segments")):
            raise DamagedError(
                f"{storage} has lost its {STORE_FILE}; expected the whole of a store, or an empty folder"
            )

"""Files of a step, and what they are compared with."""

from abi_jax.wdbx.storage.base import Storage


def file_hashes(storage: Storage, name: str) -> dict[str, str]:
    """SHA-256 of every file of a step, by its path."""
    found = {path: storage.digest(f"{name}/{path}") for path in storage.paths(name)}
    return {path: digest for path, digest in found.items() if digest is not None}

"""Erasing a tenant: a record says which keys go, then they do. docs/wdbx-format.md, "Encryption"."""

from abi_jax.errors import InputError
from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.contents import Contents
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.records import RecordSeals
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.log.commit import Commits, Draft
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.storage.base import Storage


def ring_of(storage: Storage) -> Keyring:
    """The data keys of a store. Raises `InputError` where it is not encrypted."""
    if storage.ring is None:
        raise InputError(f"{storage} is not encrypted; expected a store that was made with a key")
    return storage.ring


def erase_tenant(ring: Keyring, contents: Contents, commits: Commits, seals: RecordSeals, tenant: str) -> int:
    """Takes the keys of a tenant away. Returns the version that says so. Nobody may seal meanwhile.

    Raises `WdbxError` where the keys could not be taken out of `keys.json`: they go when it is next written.
    """
    with commits.paused():
        mine = [each.number for each in contents.collections.values() if each.spec.tenant == tenant]
        if not tenant or not mine:
            there = sorted({each.spec.tenant for each in contents.collections.values()} - {""})
            raise InputError(f"tenant {tenant!r} has no collection; expected one of {', '.join(there) or 'none'}")
        token = ring.token(tenant)
        keys = ring.of_tenant(token)
        said = {"tenant": token, "collections": mine, "keys": keys}
        seals.erased |= set(mine)
        try:
            version = commits.commit(Draft(Kind.ERASE, 0, 0, canonical(said)))[0]
        except BaseException:
            seals.erased -= set(mine)
            raise
        seals.forget(tenant)
        try:
            ring.drop(keys)
        except OSError as error:
            raise WdbxError(
                f"tenant {tenant!r} is erased since version {version}, but its keys are still in {KEYS_FILE}: "
                f"{error.strerror}; they go when it is next written, at the latest when the store is opened again"
            ) from error
    return version

"""What a store takes that is made to take signed versions only: none without its signature, whoever reads it."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from abi_jax.wdbx.crypto.signatures import wrong_signature
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.log.file import scan
from abi_jax.wdbx.log.order import Logs
from abi_jax.wdbx.log.record import Flag, Head, Record
from abi_jax.wdbx.storage.base import Storage

NOT_PUT_IN_FORCE = "no signed version puts it in force"


def signed_logs(storage: Storage, logs: Logs, public_keys: Collection[str], since: bytes | None) -> Logs:
    """Logs of which every version has its signature. public_keys: what the store takes; where there are none, all is.

    since: the link of a version that was found to be signed before, with all versions that it stands on. Raises
    `DamagedError` with the first version that is not. One of the last group that was written, whose bytes are not
    those of a signature, is what a crash left, as any torn record.
    """
    if not public_keys:
        return logs
    for record, wrong in unsigned(_behind(logs.records, since), logs.newest.head.store, public_keys):
        version, newest = record.head.version, logs.newest
        if storage.tears and record.head.flags & Flag.SIGNED and version >= newest.head.first:
            cut = scan(newest.head, storage.read_log(f"log/{newest.head.name}") or b"", before=version)
            if not cut.damaged_version:
                logs = replace(logs, scans=[*logs.scans[:-1], cut])
                break
        raise DamagedError(f"{storage}: version {version} {wrong}; see abi wdbx verify")
    check_put_in_force(storage, logs, public_keys)
    return logs


def check_put_in_force(storage: Storage, logs: Logs, public_keys: Collection[str]) -> None:
    """Raises `DamagedError` where the head of a log alone, which nobody signs, names the manifest in force."""
    if public_keys and logs.manifest[0] and logs.sealing is None:
        raise DamagedError(f"{storage}: of the manifest up to version {logs.manifest[0]}, {NOT_PUT_IN_FORCE}")


def unsigned(records: Iterable[Record], store: bytes, public_keys: Collection[str]) -> Iterator[tuple[Record, str]]:
    """Records whose signature does not hold, and why; all do where there are no public keys."""
    for record in records if public_keys else ():
        wrong = wrong_signature(record.signature, store, record.head.link, public_keys)
        if wrong:
            yield record, wrong


def never_signed(heads: Iterable[Head], public_keys: Collection[str]) -> list[int]:
    """Versions that say themselves that they were not signed, of a store that takes signed ones only."""
    return [head.version for head in heads if not head.flags & Flag.SIGNED] if public_keys else []


def _behind(records: list[Record], since: bytes | None) -> list[Record]:
    """Records behind the one with that link, which stands for all before it; all of them where there is none."""
    at = next((i + 1 for i, record in enumerate(records) if record.head.link == since), 0)
    return records[at:]

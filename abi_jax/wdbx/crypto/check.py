"""What of keys, records and signatures is not as somebody with the keys wrote it: what `verify` says of them."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from abi_jax.wdbx.crypto.keyring import Keyring, read_keys
from abi_jax.wdbx.crypto.records import open_record
from abi_jax.wdbx.crypto.signatures import wrong_signature
from abi_jax.wdbx.errors import DamagedError, NoKeyError
from abi_jax.wdbx.log.record import Record

if TYPE_CHECKING:
    from abi_jax.wdbx.storage.base import Storage


def wrong_keys(storage: "Storage", store: bytes) -> Iterator[tuple[str, str]]:
    """What `keys.json` holds and what is wrong with it: with the keys, of every one of them."""
    try:
        entries, _ = read_keys(storage, store)
    except DamagedError as error:
        yield "data keys", str(error)
        return
    ring = storage.ring
    if ring is None:
        return
    for number in entries:
        try:
            ring.key(number)
        except (DamagedError, NoKeyError, ValueError) as error:
            yield f"data key {number}", f"cannot be unwrapped: {error}"


def wrong_records(
    ring: Keyring | None, records: Sequence[Record], erased: Collection[int], store: bytes, public_keys: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """Versions that do not open, or whose signature does not hold, and why. ring: None to look at signatures alone."""
    for record in records:
        head = record.head
        if ring is not None and head.data_key not in erased:
            try:
                open_record(ring, record)
            except DamagedError as error:
                yield head.version, str(error)
        if public_keys or record.signature:
            wrong = wrong_signature(record.signature, store, head.link, public_keys)
            if wrong:
                yield head.version, wrong

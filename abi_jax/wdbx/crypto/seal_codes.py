"""Codes of records that put a manifest in force, which anybody can read and only somebody with the key can write.

docs/wdbx-format.md, "Encryption".
"""

import hmac
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.crypto.keyring import NAMES, Keyring, derived
from abi_jax.wdbx.log.record import Head, Kind, Record

FIELD = "mac"
CODE_BYTES = 32


def with_code(ring: Keyring, head: Head, payload: bytes, previous: bytes) -> tuple[Head, bytes]:
    """A head with its length, and the payload with the code. previous: the link before the version's."""
    said = json.loads(payload)
    head = replace(head, length=len(canonical(said | {FIELD: bytes(CODE_BYTES).hex()})))
    return head, canonical(said | {FIELD: _code(ring, head, said, previous).hex()})


def wrong_codes(
    ring: Keyring, records: Iterable[tuple[Record, bytes]], keyed: int | None
) -> Iterator[tuple[Record, str]]:
    """Records of sealings that nobody with the key wrote where they are, and why.

    records: each with the link before it. keyed: the version from which on they have codes, None for none; before that
    they may have.
    """
    for record, previous in records:
        if record.head.kind is not Kind.SEAL:
            continue
        said, code = _read(record.payload)
        if code is None and keyed is not None and record.head.version >= keyed:
            yield record, "puts a manifest in force without the code of somebody who has the key"
        elif code is not None and not hmac.compare_digest(code, _code(ring, record.head, said, previous).hex()):
            yield record, "puts a manifest in force, or comes after versions, that nobody with the key wrote so"


def _read(payload: bytes) -> tuple[dict[str, Any], str | None]:
    said: dict[str, Any] = json.loads(payload)
    code = said.pop(FIELD, None)
    return said, None if code is None else str(code)


def _code(ring: Keyring, head: Head, said: dict[str, Any], previous: bytes) -> bytes:
    bound = ring.store + head.encode()[4:64] + previous + canonical(said)
    return hmac.digest(derived(ring.key(NAMES), "wdbx seal"), bound, "sha256")

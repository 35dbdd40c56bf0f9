"""Records of the log, one a version: heads of fixed size, payloads, and the links between them.

The layout is docs/wdbx-format.md, "The log".
"""

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

from abi_jax.lineage_digest import sha256

MAGIC = b"WREC"
HEAD = struct.Struct("<4sHHQQQQIIQQ32s32s")
SIGNATURE_BYTES = 32 + 64  # an Ed25519 public key, and a signature over the link
LONGEST = 1 << 32  # bytes of a payload: what claims to be longer is damage, and never read
GENESIS = bytes(32)  # the link of version 0, the empty store


class Kind(IntEnum):
    """What a version did."""

    CREATE = 1
    DROP = 2
    UPSERT = 3
    DELETE = 4
    TAG = 5
    SEAL = 6
    ERASE = 7
    SETTINGS = 8
    PARENTS = 9
    COLUMNS = 10


KINDS = frozenset(Kind)


class Flag(IntEnum):
    """Bits of `Head.flags`."""

    ENCRYPTED = 1
    SIGNED = 2


@dataclass(frozen=True)
class Head:
    """The fixed part of a record; also all that history keeps of it.

    time: microseconds since 1970, UTC. collection: 0 for the store. rows: born, or asked to die. digest: of the payload
    as it is stored. group: how many records before this one were written with it, and waited for together.
    data_key: 0 for none.
    """

    kind: Kind
    version: int
    time: int
    epoch: int
    collection: int
    rows: int
    length: int
    digest: bytes
    link: bytes = GENESIS
    group: int = 0
    flags: int = 0
    data_key: int = 0

    def encode(self) -> bytes:
        """The 128 bytes of the head."""
        return HEAD.pack(
            MAGIC,
            self.flags,
            self.kind,
            self.length,
            self.version,
            self.time,
            self.epoch,
            self.collection,
            self.group,
            self.data_key,
            self.rows,
            self.digest,
            self.link,
        )

    def linked(self, previous: bytes) -> "Head":
        """The head with its link: over the link before it and everything else it says."""
        return replace(self, link=self.link_after(previous))

    def link_after(self, previous: bytes) -> bytes:
        """What the link of this head must be after `previous`."""
        return sha256("wdbx link", previous, self.encode()[4:96])

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return HEAD.size + self.length + (SIGNATURE_BYTES if self.flags & Flag.SIGNED else 0)


EMPTY = Head(Kind.CREATE, 0, 0, 0, 0, 0, 0, bytes(32))  # the version before the first, which has no record


@dataclass(frozen=True)
class Record:
    """A version: what is said of it, and what it holds, as it is stored."""

    head: Head
    payload: bytes
    signature: bytes = b""

    @property
    def parts(self) -> tuple[bytes, bytes, bytes]:
        """The bytes of the record in a log, in three parts."""
        return self.head.encode(), self.payload, self.signature

    def encode(self) -> bytes:
        """The bytes of the record in a log."""
        return b"".join(self.parts)


def payload_digest(payload: bytes | memoryview) -> bytes:
    """The hash that a head gives its payload."""
    return sha256("wdbx payload", payload)


def parse_head(data: bytes | memoryview) -> Head | None:
    """Reads a head; None where the bytes are not one."""
    if len(data) < HEAD.size:
        return None
    magic, flags, kind, length, version, time, epoch, collection, group, data_key, rows, digest, link = HEAD.unpack(
        data[: HEAD.size]
    )
    if magic != MAGIC or kind not in KINDS or flags & ~(Flag.ENCRYPTED | Flag.SIGNED) or length > LONGEST:
        return None
    return Head(Kind(kind), version, time, epoch, collection, rows, length, digest, link, group, flags, data_key)

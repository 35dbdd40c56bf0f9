"""Log files: a head that says where the chain was, then records. docs/wdbx-format.md, "The log"."""

import hashlib
import struct
from dataclasses import dataclass

from abi_jax.wdbx.log.record import HEAD, MAGIC, SIGNATURE_BYTES, Flag, Record, parse_head, payload_digest

LOG_MAGIC = b"WDBXLOG1"
LOG_HEAD = struct.Struct("<8s16sQQQ32s32s16s")
CHECK = 16  # bytes of the hash at the end of a head


@dataclass(frozen=True)
class LogHead:
    """What a log file begins with: 128 bytes.

    store: 16 bytes. first: the first version that it may hold; link: the link before that. manifest, manifest_hash: the
    manifest that it stands on, 0 and zeros for none.
    """

    store: bytes
    epoch: int
    first: int
    link: bytes
    manifest: int = 0
    manifest_hash: bytes = bytes(32)

    def encode(self) -> bytes:
        """The bytes at the beginning of the file."""
        check = bytes(CHECK)
        packed = LOG_HEAD.pack(
            LOG_MAGIC, self.store, self.epoch, self.first, self.manifest, self.manifest_hash, self.link, check
        )[:-CHECK]
        return packed + hashlib.sha256(packed).digest()[:CHECK]

    @property
    def name(self) -> str:
        """The file's name in the folder `log`."""
        return f"{self.first:020d}-{self.epoch:08d}.wal"


def begun(name: str) -> tuple[int, int]:
    """Epoch and first version in the name of a log file; zeros for a name that is none of a log's."""
    first, _, epoch = name.removesuffix(".wal").partition("-")
    return (int(epoch), int(first)) if first.isdecimal() and epoch.isdecimal() else (0, 0)


def parse_log_head(data: bytes | memoryview) -> LogHead | None:
    """Reads the head of a log file; None where the bytes are not one."""
    if len(data) < LOG_HEAD.size:
        return None
    packed = bytes(data[: LOG_HEAD.size])
    magic, store, epoch, first, manifest, manifest_hash, link, check = LOG_HEAD.unpack(packed)
    if magic != LOG_MAGIC or hashlib.sha256(packed[:-CHECK]).digest()[:CHECK] != check:
        return None
    return LogHead(store, epoch, first, link, manifest, manifest_hash)


@dataclass(frozen=True)
class Scan:
    """What a log file holds: its good records, where they end, and what is behind them.

    damaged_version: of the first record that was acknowledged and is not good, 0 for none. Where there is none, what
    lies behind `end` is torn.
    """

    head: LogHead
    records: list[Record]
    ends: list[int]
    size: int
    damaged_version: int = 0

    @property
    def end(self) -> int:
        """Where the last good record ends."""
        return self.ends[-1] if self.ends else LOG_HEAD.size

    @property
    def torn(self) -> bool:
        """Whether something lies behind the last good record."""
        return self.end < self.size

    @property
    def link(self) -> bytes:
        """The link of the last good record."""
        return self.records[-1].head.link if self.records else self.head.link

    @property
    def next_version(self) -> int:
        """The version after the last good record."""
        return self.head.first + len(self.records)

    def before(self, version: int) -> "Scan":
        """Without `version` and what lies behind it, which is of a writer that was fenced."""
        if self.next_version < version:
            return self
        count = version - self.head.first
        return Scan(
            self.head, self.records[:count], self.ends[:count], self.ends[count - 1] if count else LOG_HEAD.size
        )


def scan(head: LogHead, data: bytes | memoryview, before: int | None = None) -> Scan:
    """Reads the records of a log file, `data` being the whole of it, and finds out what is wrong where they end.

    before: a version that is not good, for reasons that are not looked at here.
    """
    view = memoryview(data)
    records: list[Record] = []
    ends: list[int] = []
    at, version, link = LOG_HEAD.size, head.first, head.link
    while (record := _record(view, at)) is not None:
        said = record.head
        if said.version != version or said.epoch != head.epoch or said.link != said.link_after(link):
            break
        if version == before:
            break
        at += said.size
        version, link = version + 1, said.link
        records.append(record)
        ends.append(at)
    acknowledged = _acknowledged(view, at, head.epoch, version)
    return Scan(head, records, ends, len(view), version if acknowledged else 0)


def _record(view: memoryview, at: int) -> Record | None:
    """The record at `at`, if its head and payload are whole; its link is not looked at."""
    head = parse_head(view[at : at + HEAD.size])
    if head is None or at + head.size > len(view):
        return None
    body = at + HEAD.size
    payload = view[body : body + head.length]
    if payload_digest(payload) != head.digest:
        return None
    signed = bool(head.flags & Flag.SIGNED)
    signature = bytes(view[body + head.length : body + head.length + SIGNATURE_BYTES]) if signed else b""
    return Record(head, bytes(payload), signature)


def _acknowledged(view: memoryview, at: int, epoch: int, version: int) -> bool:
    """Whether a record behind `at` was written after `version` had been waited for."""
    data = bytes(view[at:])
    found = data.find(MAGIC, 1)
    while found >= 0:
        record = _record(view, at + found)
        if record is not None and record.head.epoch == epoch and record.head.version - record.head.group > version:
            return True
        found = data.find(MAGIC, found + 1)
    return False


def epoch_of(log: str) -> int:
    """The epoch in the name of a log file; 0 for a name that is none of a log's."""
    return begun(log)[0]

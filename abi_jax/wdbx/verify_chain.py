"""Whether the links of a store follow from each other, and whether its file `head` is of the same chain."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.log.order import Logs
from abi_jax.wdbx.log.record import GENESIS, Head
from abi_jax.wdbx.manifest import Manifest
from abi_jax.wdbx.witness import HEAD_FILE, read_witness


@dataclass
class Line:
    """Heads of versions, oldest first, and the file that each is from."""

    heads: list[Head] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, heads: list[Head], file: str) -> None:
        """Adds heads behind those that are there."""
        self.heads += heads
        self.files += [file] * len(heads)

    @property
    def version(self) -> int:
        """The last version."""
        return self.heads[-1].version if self.heads else 0

    @property
    def link(self) -> bytes:
        """The last link."""
        return self.heads[-1].link if self.heads else GENESIS

    def cut(self, version: int) -> None:
        """Takes away `version` and all behind it."""
        kept = sum(head.version < version for head in self.heads)
        self.heads, self.files = self.heads[:kept], self.files[:kept]

    def links(self) -> dict[int, str]:
        """The link of every version, as hexadecimal."""
        return {0: GENESIS.hex()} | {head.version: head.link.hex() for head in self.heads}


def line_up(line: Line, logs: Logs) -> None:
    """Adds the versions of logs behind those that are sealed."""
    for each in logs.scans:
        line.cut(each.head.first)
        line.add([record.head for record in each.records], f"log/{each.head.name}")


def chain_findings(line: Line, logs: Logs, manifest: Manifest | None) -> Iterator[Finding]:
    """Whether every link follows from the one before, from the first version to the last; what is said of them."""
    links = line.links()
    yield from logs.wrong()
    for each in logs.scans:
        file = f"log/{each.head.name}"
        if links.get(each.head.first - 1) != each.head.link.hex():
            said = f"does not go on from version {each.head.first - 1}, or that is not there"
            yield Finding(file, f"versions from {each.head.first}", said)
        if each.torn and not each.damaged_version:
            left = f"ends with {each.size - each.end} bytes that are no record: cut off, or damaged"
            yield Finding(file, f"version {each.next_version}", left)
    previous, version = GENESIS, 0
    for head, file in zip(line.heads, line.files, strict=True):
        if head.version != version + 1:
            yield Finding(file, f"version {head.version}", f"follows version {version}: versions are missing")
        elif head.link != head.link_after(previous):
            yield Finding(file, f"version {head.version}", "its link does not follow from the one before it")
        previous, version = head.link, head.version
    if manifest is not None and links.get(manifest.version) != manifest.link:
        yield Finding("manifests", f"up to version {manifest.version}", "its link is not the chain's")


def witness_findings(data: bytes | None, line: Line, logs: Logs, closed: bool) -> Iterator[Finding]:
    """What is wrong with the file `head`: damaged, an older one put back, or the chain is another than it says.

    closed: nobody writes, and the last who did closed the store: then it says where the chain ends. Otherwise it was
    written when the newest log or one of those before it was begun, and what came after it is of its epoch.
    """
    holds = "where the chain was"
    if data is None:
        if closed or line.heads:
            yield Finding(HEAD_FILE, holds, "is missing")
        return
    try:
        said = read_witness("it", data)
    except DamagedError as error:
        yield Finding(HEAD_FILE, holds, str(error))
        return
    holds = f"version {said.version}"
    epoch = logs.newest.head.epoch if logs.scans else said.epoch
    later = [head for head in line.heads if head.version > said.version]
    if said.version > line.version:
        yield Finding(HEAD_FILE, holds, f"the chain ends at version {line.version}: its end was cut off")
    elif line.links()[said.version] != said.link:
        yield Finding(HEAD_FILE, holds, "its link is not the chain's")
    elif said.closed and later:
        yield Finding(HEAD_FILE, holds, f"closed there, but the chain goes on to {line.version}")
    elif closed and (not said.closed or said.epoch != epoch):
        yield Finding(HEAD_FILE, holds, "is not the one that was written when the store was closed: an older one")
    elif any(head.epoch != said.epoch for head in later) or said.epoch > epoch:
        yield Finding(HEAD_FILE, holds, f"is of epoch {said.epoch}, the chain goes on in another: an older one")

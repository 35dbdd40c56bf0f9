"""Links and chains: what was made from what, in an order that nobody can change unseen.

    H_n = SHA-256(domain, H_{n-1}, canonical JSON of the link)

A link says what a checkpoint holds (`content`, the root of its tensors' digests), which files hold it (`seal`),
and what it was made from: configuration, data position, code, and the heads of other chains (`parents`). A chain
is a text file of one link a line; its last hash, the head, stands for everything before it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.lineage_digest import canonical, sha256

GENESIS = "0" * 64
HASH = re.compile("[0-9a-f]{64}")  # as text


@dataclass(frozen=True)
class Link:
    """One version of a model or of a memory. Hashes are hexadecimal, `time` is UTC, ISO 8601.

    previous: the link before it in its chain. content: what it holds. seal: the files that hold it.
    config, position: what it was made with. code: the version that made it. parents: links of other chains that
    it was made from, and one of this chain where a run went back behind the head.
    """

    kind: Literal["model", "memory"]
    step: int
    content: str
    seal: str
    config: str
    position: str
    code: str
    parents: tuple[str, ...] = ()
    time: str = ""
    previous: str = GENESIS

    @property
    def hash(self) -> str:
        """This link's hash: the head of the chain that ends with it."""
        told = {name: value for name, value in asdict(self).items() if name != "previous"}
        return sha256("link", bytes.fromhex(self.previous), canonical(told)).hex()

    def line(self) -> str:
        """The link as a line of a chain file."""
        return canonical(asdict(self) | {"hash": self.hash}).decode() + "\n"


@dataclass(frozen=True)
class Break:
    """Where a chain does not hold: the link's number, from 1, and what is wrong with it."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"link {self.number}: {self.reason}"


class Chain:
    """A chain in a file, which is made when the first link is appended; rewritten whole, so never half a link."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def links(self) -> list[Link]:
        """All links, oldest first. Raises `InputError` where the chain does not hold."""
        found = []
        for link in self.entries():
            if isinstance(link, Break):
                raise InputError(f"{self.path}: {link}; see abi verify")
            found.append(link)
        return found

    def breaks(self) -> list[Break]:
        """Everything that is wrong with the chain."""
        return [link for link in self.entries() if isinstance(link, Break)]

    @property
    def head(self) -> str:
        """The last hash; zeros where there is no link."""
        links = self.links()
        return links[-1].hash if links else GENESIS

    def append(self, link: Link) -> Link:
        """Adds a link after the head, now, and returns it as it was written."""
        links = self.links()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = replace(link, previous=links[-1].hash if links else GENESIS, time=link.time or now)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(link.line() for link in [*links, made]))
        return made

    def entries(self) -> Iterator[Link | Break]:
        """Every line, oldest first: its link, or what is wrong with it."""
        if not self.path.is_file():
            return
        head = GENESIS
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            link = parse_link(line)
            if isinstance(link, str):
                yield Break(number, link)
                continue
            if link.previous != head:
                yield Break(number, f"follows {link.previous[:12]}, but the link before it is {head[:12]}")
            else:
                yield link
            head = link.hash


def parse_link(line: bytes) -> Link | str:
    """Reads a line of a chain file; what is wrong with it, where it is not exactly what `Link.line` wrote."""
    try:
        value: Any = json.loads(line)
        link = Link(**{f.name: value[f.name] for f in fields(Link)} | {"parents": tuple(value["parents"])})
        hashes = (link.content, link.seal, link.config, link.position, link.previous, *link.parents)
        whole = link.line().encode() == line and isinstance(link.step, int) and all(map(HASH.fullmatch, hashes))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "not a link: damaged, or not written by this program"
    if not whole:
        return f"its content does not have the hash it is given ({str(value.get('hash'))[:12]!a})"
    return link

"""Which records of a store's log files count, and what is wrong with how the files lie behind each other.

docs/wdbx-format.md, "Several files": the one place that knows, for whoever opens, verifies or copies a store.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.log.file import Scan
from abi_jax.wdbx.log.record import GENESIS, Kind, Record


@dataclass(frozen=True)
class Logs:
    """Log files in the order in which they were begun, each without the versions that a later one has.

    twice: of files of one epoch that hold the same versions the earlier, the later, and the first such version.
    """

    scans: Sequence[Scan]
    twice: Sequence[tuple[Scan, Scan, int]] = ()

    @cached_property
    def records(self) -> list[Record]:
        """The records that count, oldest first."""
        return [record for each in self.scans for record in each.records]

    @property
    def linked(self) -> Iterator[tuple[Record, bytes]]:
        """The records that count, oldest first, each with the link before it."""
        for each in self.scans:
            previous = each.head.link
            for record in each.records:
                yield record, previous
                previous = record.head.link

    @property
    def newest(self) -> Scan:
        """The file that was begun last; there must be one."""
        return self.scans[-1]

    @property
    def version(self) -> int:
        """The last version."""
        return self.newest.next_version - 1

    @property
    def link(self) -> bytes:
        """The link of the last version."""
        return self.newest.link

    @property
    def sealing(self) -> Record | None:
        """The record that put the manifest in force; None where there is none, or the newest head alone names one."""
        return next((record for record in reversed(self.records) if record.head.kind is Kind.SEAL), None)

    @property
    def manifest(self) -> tuple[int, bytes]:
        """Version and hash of the manifest in force; 0 and zeros for none."""
        sealing = self.sealing
        if sealing is not None:
            said = json.loads(sealing.payload)
            return said["version"], bytes.fromhex(said["hash"])
        return (self.newest.head.manifest, self.newest.head.manifest_hash) if self.scans else (0, GENESIS)

    def file_of(self, version: int) -> str:
        """The file in `log` that a version is in; the newest one's for a version that is in none."""
        found = (each for each in self.scans if each.head.first <= version < each.next_version)
        return next(found, self.newest).head.name

    def up_to(self, version: int) -> "Logs":
        """Without what lies behind `version`."""
        return Logs([each.before(version + 1) for each in self.scans if each.head.first <= version + 1], self.twice)

    def wrong(self) -> Iterator[Finding]:
        """Records that are damaged, or in two files of which only one can be right."""
        for earlier, later, version in self.twice:
            said = (
                f"is in log/{later.head.name}, too, which the same writer began behind it: "
                "one of the two is not as it was written"
            )
            yield Finding(f"log/{earlier.head.name}", f"version {version}", said)
        for each in self.scans:
            if each.damaged_version:
                said = "a record is damaged that was acknowledged"
                yield Finding(f"log/{each.head.name}", f"version {each.damaged_version} and later", said)

    def check(self) -> None:
        """Raises `DamagedError` where something is wrong with them, or one does not go on where another ends."""
        for finding in self.wrong():
            raise DamagedError(str(finding))
        for before, each in pairwise(self.scans):
            if before.next_version != each.head.first or before.link != each.head.link:
                raise DamagedError(
                    f"log/{each.head.name} does not go on from version {before.next_version - 1}, the last before it"
                )


def ends(begun: Sequence[tuple[int, int]]) -> list[int | None]:
    """The version before which each file ends, None for the last: where a later one begins.

    begun: epoch and first version of each, in the order in which they were begun, which is that of the numbers.
    """
    made: list[int | None] = []
    lowest: int | None = None
    for _, first in reversed(begun):
        made.append(lowest)
        lowest = first if lowest is None else min(lowest, first)
    return made[::-1]


def in_order(scans: Sequence[Scan]) -> Logs:
    """Log files as they were found, brought into their order: of a version that several have, the newest counts.

    A writer that goes on in another file begins it behind the last version of the one before. So where files of one
    epoch have the same version, it is not that a writer was fenced.
    """
    made = sorted(scans, key=lambda each: (each.head.epoch, each.head.first))
    twice = [
        (one, other, other.head.first)
        for one, other in pairwise(made)
        if one.head.epoch == other.head.epoch and one.next_version > other.head.first
    ]
    kept = [
        each if end is None else each.before(end)
        for each, end in zip(made, ends([(each.head.epoch, each.head.first) for each in made]), strict=True)
        if end is None or end > each.head.first
    ]
    return Logs(kept, twice)

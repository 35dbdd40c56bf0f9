"""A slab: pages of several rows' owners in one array that lies split over all devices, and which rows of it count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from abi_jax.wdbx.search.mesh_gather import NO_PLACE, width_of
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_programs import Arrays, Programs

if TYPE_CHECKING:
    from abi_jax.wdbx.search.mesh_layout import Layout

NOBODY = -1


@dataclass(eq=False)
class Slab:
    """`slots` pages over all devices: whose each is (`NOBODY`), which page of that owner, how many rows are in it.

    group: for which rows it is; see `mesh_pool`.
    """

    slots: int
    group: int
    arrays: Arrays
    owner: np.ndarray
    page: np.ndarray
    filled: np.ndarray
    _last: "tuple[list[tuple[int, int, np.ndarray]], Seen] | None" = None

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return int(np.count_nonzero(self.owner != NOBODY))

    def take(self, slot: int, owner: int, page: int) -> None:
        """Notes whose page is in a slot."""
        self.owner[slot], self.page[slot], self._last = owner, page, None

    def free(self, slot: int) -> None:
        """Notes that nobody's page is in a slot."""
        self.owner[slot], self._last = NOBODY, None

    def scanned(
        self,
        programs: Programs,
        rows: int,
        parts: Sequence[MeshPart],
        place: Mapping[int, int],
        layouts: "Mapping[int, Layout | None]",
    ) -> "Scanned | None":
        """The slab as a search of some parts sees it; None where none of its rows may be found.

        rows: of a page. place: which part of the search an owner is. layouts: by part. What the last search saw is
        remembered, as long as the same rows may be found.
        """
        owners = np.unique(self.owner).tolist()
        asked = [(each, place[each], parts[place[each]].allowed) for each in owners if each in place]
        if self._last is None or not _same(self._last[0], asked):
            made = self._see(programs, rows, parts, place, layouts)
            if self._last is not None and np.array_equal(self._last[1].rows, made.rows):
                made.take_over(self._last[1])
            self._last = asked, made
        return Scanned(self, self._last[1]) if self._last[1].any else None

    def _see(
        self,
        programs: Programs,
        rows: int,
        parts: Sequence[MeshPart],
        place: Mapping[int, int],
        layouts: "Mapping[int, Layout | None]",
    ) -> "Seen":
        mask = np.zeros(self.slots * rows, bool)
        part = np.array([place.get(number, NOBODY) for number in self.owner.tolist()])
        for start, end in _runs(part, self.page):
            number = int(part[start])
            layout, allowed = layouts[number], parts[number].allowed
            every = allowed if layout is None else layout.placed(allowed)
            some = every[self.page[start] * rows : (self.page[end - 1] + 1) * rows]
            mask[start * rows : start * rows + len(some)] = some
        return Seen(mask, part, self.page.copy(), programs)


@dataclass(eq=False)
class Seen:
    """Which rows of a slab may be found, bool `[slots R]`, and of each page the part of the search, and which page.

    It does not know the slab: what is on the devices goes when the last who knows it does.
    """

    rows: np.ndarray
    part: np.ndarray
    page: np.ndarray
    programs: Programs

    @cached_property
    def any(self) -> bool:
        """Whether any rows may be found."""
        return bool(self.rows.any())

    @cached_property
    def mask(self) -> jax.Array:
        """Which rows may be found, on the devices, bool `[slots, R]`."""
        return self.programs.split(self.rows.reshape(len(self.part), -1))

    @cached_property
    def few(self) -> jax.Array | None:
        """Where the rows are, on the devices, int32 `[D, W]`, if they are so few that these are looked at alone."""
        devices = self.programs.devices
        by_device = self.rows.reshape(devices, -1)
        width = width_of(by_device.shape[1])
        if width is None or np.count_nonzero(by_device, axis=1).max() > width:
            return None
        made = np.full((devices, width), NO_PLACE, np.int32)
        for each, rows in zip(made, by_device, strict=True):
            found = np.flatnonzero(rows)
            each[: len(found)] = found
        return self.programs.split(made)

    def take_over(self, other: "Seen") -> None:
        """Takes what is on the devices from another one, of the same rows."""
        for name in ("mask", "few"):
            if name in other.__dict__:
                self.__dict__[name] = other.__dict__[name]


class Scanned(NamedTuple):
    """A slab, and what a search sees of it."""

    slab: Slab
    seen: Seen


def _same(last: list[tuple[int, int, np.ndarray]], asked: list[tuple[int, int, np.ndarray]]) -> bool:
    pairs = zip(last, asked, strict=False)
    return len(last) == len(asked) and all(a[:2] == b[:2] and a[2] is b[2] for a, b in pairs)


def _runs(part: np.ndarray, page: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slots in a row that hold pages in a row of one part."""
    if not len(part):
        return
    breaks = np.flatnonzero((np.diff(part) != 0) | (np.diff(page) != 1)) + 1
    for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(part)], strict=True):
        if part[start] != NOBODY:
            yield start, end

"""Where a collection's pages are: in slabs, arrays of a few sizes that lie split over all devices.

A page is in a slot of a slab; which rows of it count is said with every search, so that deletes, filters and old
versions move nothing. New rows take free slots, then new slabs; rows that no search has asked for in a while leave
theirs. Every process decides the same, from the same searches in the same order, and decodes only what its own devices
hold.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

import jax
import numpy as np

from abi_jax.wdbx.search.mesh_pages import PageShape, empty_pages, fill
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_programs import Arrays, Programs

LADDER = (1024, 256, 64, 16, 4, 1)  # pages of a slab on each device
MANY = 8  # slabs of one size are made into larger ones
SPARSE = 4  # a slab of which less than this part is in use is given up
KEPT = 16  # searches for which rows keep their pages without being asked for
NOBODY = -1


@dataclass(eq=False)
class Slab:
    """`slots` pages over all devices: whose each is (`NOBODY`), which page of that owner, how many rows are in it."""

    slots: int
    arrays: Arrays
    owner: np.ndarray
    page: np.ndarray
    filled: np.ndarray
    mask: tuple[np.ndarray, jax.Array] | None = None

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return int(np.count_nonzero(self.owner != NOBODY))


@dataclass(eq=False)
class _Owner:
    """What is known of an owner. pages: of a page the slab and slot."""

    alive: Any
    last_search: int
    pages: dict[int, tuple[Slab, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scanned:
    """A slab to scan, its mask on the devices, and a copy of whose its pages are: part of the search, page."""

    slab: Slab
    mask: jax.Array
    part: np.ndarray
    page: np.ndarray


class Pool:
    """The pages of one collection. largest: most pages of a slab on each device."""

    def __init__(self, shape: PageShape, programs: Programs, largest: int) -> None:
        self.shape = shape
        self.slabs: list[Slab] = []
        self.searches = 0
        self._programs = programs
        self._ladder = [size for size in LADDER if size <= largest] or [1]
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._owners: dict[int, _Owner] = {}
        self._last = 0

    @property
    def nbytes(self) -> int:
        """Bytes on each device."""
        return sum(each.slots for each in self.slabs) // self._programs.devices * self.shape.nbytes

    def prepare(self, parts: Sequence[MeshPart], room: int | None) -> list[tuple[int, int]]:
        """Puts the pages of a search on the devices. Returns those for which there is no room: part, page.

        room: bytes on each device, for all pages of this pool.
        """
        self.searches += 1
        numbers = [self._number(each) for each in parts]
        self._leave()
        missing, changed = [], []
        for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
            owner = self._owners[number]
            if not part.allowed.any():
                continue
            for page, count in enumerate(page_counts(self.shape, len(part.vectors))):
                found = owner.pages.get(page)
                if found is None:
                    missing.append((i, page))
                elif found[0].filled[found[1]] < count:
                    changed.append((i, page))
        for i, page in changed:
            slab, slot = self._owners[numbers[i]].pages[page]
            self._write(slab, [(slot, parts[i], page)])
        missing = self._take_free(parts, numbers, missing)
        return self._make_slabs(parts, numbers, missing, room)

    def scanned(self, parts: Sequence[MeshPart]) -> Iterator[Scanned]:
        """The slabs that hold rows which may be found, with masks. Call `prepare` first."""
        place = {self._numbers[part.owner]: i for i, part in enumerate(parts)}
        for slab in self.slabs:
            made = self._scanned(slab, parts, place)
            if made is not None:
                yield made

    def streamed(
        self, parts: Sequence[MeshPart], missing: Sequence[tuple[int, int]], pages: int, wait: Callable[[], None]
    ) -> Iterator[Scanned]:
        """Slabs of `pages` pages a device for pages without room; each is made while the one before is scanned.

        wait: returns when no more than one scan of a slab is going on.
        """
        slots = pages * self._programs.devices
        numbers = [self._numbers[part.owner] for part in parts]
        for start in range(0, len(missing), slots):
            wait()
            chosen = missing[start : start + slots]
            slab = self._slab(slots, [(i, parts[i], page) for i, page in chosen])
            slab.owner[: len(chosen)] = [numbers[i] for i, _ in chosen]
            made = self._scanned(slab, parts, {number: i for i, number in enumerate(numbers)})
            if made is not None:
                yield made

    def is_wanted(self) -> bool:
        """Whether anybody still has any of the rows."""
        return any(owner.alive() is not None for owner in self._owners.values())

    def drop(self, slab: Slab) -> None:
        """Gives up a slab; its pages are no longer on the devices."""
        self.slabs.remove(slab)
        for number, page in zip(slab.owner.tolist(), slab.page.tolist(), strict=True):
            if number != NOBODY:
                del self._owners[number].pages[page]

    def _number(self, part: MeshPart) -> int:
        number = self._numbers.get(part.owner)
        if number is None or number not in self._owners:
            number = self._last = self._last + 1
            self._numbers[part.owner] = number
            self._owners[number] = _Owner(ref(part.owner), self.searches)
        self._owners[number].last_search = self.searches
        return number

    def _leave(self) -> None:
        """Frees what is not needed: only what all processes know to be so, where there are several."""
        for number, owner in list(self._owners.items()):
            dead = self._programs.alone and owner.alive() is None
            if dead or owner.last_search <= self.searches - KEPT:
                for slab, slot in owner.pages.values():
                    slab.owner[slot] = NOBODY
                del self._owners[number]
        sizes = [slab.slots for slab in self.slabs]
        largest = self._ladder[0] * self._programs.devices
        for slab in list(self.slabs):
            many = slab.slots < largest and sizes.count(slab.slots) >= MANY
            sparse = slab.used * SPARSE <= slab.slots and slab.slots > self._programs.devices
            if many or sparse or not slab.used:
                self.drop(slab)

    def _take_free(
        self, parts: Sequence[MeshPart], numbers: Sequence[int], missing: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Puts pages into free slots, one on each device at a time; those that are left."""
        left = list(reversed(missing))
        for slab in self.slabs:
            free = np.flatnonzero(slab.owner == NOBODY)
            size = slab.slots // self._programs.devices
            while len(free) and left:
                _, first = np.unique(free // size, return_index=True)
                now = free[first][: len(left)]
                written = []
                for slot in now.tolist():
                    i, page = left.pop()
                    self._place(slab, slot, numbers[i], page)
                    written.append((slot, parts[i], page))
                self._write(slab, written)
                free = np.setdiff1d(free, now)
        return left[::-1]

    def _make_slabs(
        self, parts: Sequence[MeshPart], numbers: Sequence[int], missing: list[tuple[int, int]], room: int | None
    ) -> list[tuple[int, int]]:
        devices = self._programs.devices
        at = 0
        while at < len(missing):
            need = -(-(len(missing) - at) // devices)
            if room is not None:
                need = min(need, (room - self.nbytes) // self.shape.nbytes)
            fit = [size for size in self._ladder if size <= need]
            if not fit:
                break
            chosen = missing[at : at + fit[0] * devices]
            slab = self._slab(fit[0] * devices, [(i, parts[i], page) for i, page in chosen])
            for slot, (i, page) in enumerate(chosen):
                self._place(slab, slot, numbers[i], page)
            self.slabs.append(slab)
            at += len(chosen)
        return missing[at:]

    def _place(self, slab: Slab, slot: int, number: int, page: int) -> None:
        slab.owner[slot], slab.page[slot] = number, page
        self._owners[number].pages[page] = slab, slot

    def _slab(self, slots: int, pages: Sequence[tuple[int, MeshPart, int]]) -> Slab:
        """A slab whose first slots hold pages of parts, of nobody yet."""
        programs, size = self._programs, slots // self._programs.devices
        held = []
        for device in programs.local:
            made = empty_pages(self.shape, size)
            for slot, (_, part, page) in enumerate(pages[device * size : (device + 1) * size]):
                fill(self.shape, made, slot, page_rows(self.shape, part, page))
            held.append(made)
        arrays = tuple(
            programs.spread(each, programs.local) for each in zip(*(each.arrays for each in held), strict=True)
        )
        slab = Slab(slots, arrays, np.full(slots, NOBODY), np.zeros(slots, np.int64), np.zeros(slots, np.int64))
        for slot, (_, part, page) in enumerate(pages):
            slab.page[slot], slab.filled[slot] = page, len(page_rows(self.shape, part, page))
        return slab

    def _write(self, slab: Slab, pages: Sequence[tuple[int, MeshPart, int]]) -> None:
        """Writes pages of parts into slots, no two of one device."""
        programs, size = self._programs, slab.slots // self._programs.devices
        written = {slot // size: (slot % size, part, page) for slot, part, page in pages}
        slots = np.full(programs.devices, size, np.int32)
        held = []
        for device in programs.local:
            made = empty_pages(self.shape, 1)
            if device in written:
                slots[device], part, page = written[device]
                fill(self.shape, made, 0, page_rows(self.shape, part, page))
            held.append(made)
        new = [programs.spread(each, programs.local) for each in zip(*(each.arrays for each in held), strict=True)]
        told = programs.spread([slots[device : device + 1] for device in programs.local], programs.local)
        slab.arrays = programs.write(slab.arrays, new, told)
        for slot, part, page in pages:
            slab.filled[slot] = len(page_rows(self.shape, part, page))

    def _scanned(self, slab: Slab, parts: Sequence[MeshPart], place: dict[int, int]) -> Scanned | None:
        rows = self.shape.rows
        mask = np.zeros(slab.slots * rows, bool)
        part = np.array([place.get(number, NOBODY) for number in slab.owner.tolist()])
        for start, end in _runs(part, slab.page):
            allowed = parts[part[start]].allowed[slab.page[start] * rows : (slab.page[end - 1] + 1) * rows]
            mask[start * rows : start * rows + len(allowed)] = allowed
        if not mask.any():
            return None
        if slab.mask is None or not np.array_equal(slab.mask[0], mask):
            slab.mask = mask, self._programs.split(mask.reshape(slab.slots, rows))
        return Scanned(slab, slab.mask[1], part, slab.page.copy())


def page_counts(shape: PageShape, rows: int) -> list[int]:
    """How many rows are in each page of a part of `rows` rows."""
    return [min(shape.rows, rows - start) for start in range(0, rows, shape.rows)]


def page_rows(shape: PageShape, part: MeshPart, page: int) -> np.ndarray:
    """The vectors of a page."""
    return part.vectors[page * shape.rows : (page + 1) * shape.rows]


def _runs(part: np.ndarray, page: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slots in a row that hold pages in a row of one part."""
    if not len(part):
        return
    breaks = np.flatnonzero((np.diff(part) != 0) | (np.diff(page) != 1)) + 1
    for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(part)], strict=True):
        if part[start] != NOBODY:
            yield start, end

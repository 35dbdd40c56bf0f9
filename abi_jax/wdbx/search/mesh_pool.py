"""Where a collection's pages are: in slabs, arrays of a few sizes that lie split over all devices.

A page is in a slot of a slab; which rows of it count is said with every search, so that deletes, filters and old
versions move nothing. New rows take free slots, then new slabs; rows that no search has asked for in a while leave
theirs. Rows with inverted lists have slabs of their own, since these are looked at in parts, and others as a whole.
Every process decides the same, from the same searches in the same order, and decodes only what its own devices hold.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from abi_jax.wdbx.search.mesh_pages import PageShape, empty_pages, fill
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_programs import Programs
from abi_jax.wdbx.search.mesh_slab import NOBODY, Scanned, Slab

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.mesh_layout import Layout

LADDER = (1024, 256, 64, 16, 4, 1)  # pages of a slab on each device
MANY = 8  # slabs of one size are made into larger ones
SPARSE = 4  # a slab of which less than this part is in use is given up
WHOLE, LISTED = range(2)  # groups of slabs: of rows as they come, and of rows by lists
KEPT = 16  # searches for which rows keep their pages without being asked for


@dataclass(eq=False)
class _Owner:
    """What is known of an owner. pages: of a page the slab and slot. layout: how its rows stand, if by lists."""

    alive: Any
    last_search: int
    pages: dict[int, tuple[Slab, int]] = field(default_factory=dict)
    layout: "Layout | None" = None


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
        missing: dict[int, list[tuple[int, int]]] = {}
        changed = []
        for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
            owner = self._owners[number]
            if not part.allowed.any():
                continue
            for page in range(self._num_pages(part)):
                found = owner.pages.get(page)
                if found is None:
                    missing.setdefault(self._group(number), []).append((i, page))
                elif found[0].filled[found[1]] < self._rows_in(part, page):
                    changed.append((i, page))
        for i, page in changed:
            slab, slot = self._owners[numbers[i]].pages[page]
            self._write(slab, [(slot, parts[i], page)])
        left = []
        for group, pages in sorted(missing.items()):
            pages = self._take_free(parts, numbers, pages, group)
            left += self._make_slabs(parts, numbers, pages, room, group)
        return left

    def arrange(self, part: MeshPart, lists: "Lists") -> "Layout":
        """Has the rows of a part stand by lists, from the next `prepare` on, if they do not yet; how they stand then.

        Those that stand so keep the lists that they have.
        """
        from abi_jax.wdbx.search.mesh_layout import Layout  # imported where lists are, since it compiles kernels

        owner = self._owners[self._number(part)]
        if owner.layout is None:
            for slab, slot in owner.pages.values():
                slab.free(slot)
            owner.pages.clear()
            owner.layout = Layout(lists, self.shape.rows)
        return owner.layout

    def layout(self, part: MeshPart) -> "Layout | None":
        """How the rows of a part stand, if they stand by lists."""
        number = self._numbers.get(part.owner)
        owner = None if number is None else self._owners.get(number)
        return None if owner is None else owner.layout

    def rows_at(self, part: MeshPart, places: np.ndarray) -> np.ndarray:
        """Rows of a part by their places in its pages."""
        layout = self.layout(part)
        return places if layout is None else layout.rows[places]

    def _num_pages(self, part: MeshPart) -> int:
        layout = self.layout(part)
        return -(-len(part.vectors) // self.shape.rows) if layout is None else layout.pages

    def _rows_in(self, part: MeshPart, page: int) -> int:
        left = len(part.vectors) - page * self.shape.rows
        return self.shape.rows if self.layout(part) is not None else min(self.shape.rows, left)

    def _group(self, number: int) -> int:
        """Which slabs the pages of an owner go into."""
        return WHOLE if self._owners[number].layout is None else LISTED

    def _held(self, count: int, pages: Sequence[tuple[int, MeshPart, int]]) -> tuple[np.ndarray, ...]:
        """Arrays of `count` pages as a device holds them, of which some, by their slots, are those of parts."""
        made = empty_pages(self.shape, count)
        for slot, part, page in pages:
            fill(self.shape, made, slot, self._page_rows(part, page))
        return made.arrays

    def _page_rows(self, part: MeshPart, page: int) -> np.ndarray:
        layout = self.layout(part)
        if layout is not None:
            return layout.page_rows(part.vectors, page)
        return part.vectors[page * self.shape.rows : (page + 1) * self.shape.rows]

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
            slab = self._slab(slots, [(i, parts[i], page) for i, page in chosen], WHOLE)
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
                    slab.free(slot)
                del self._owners[number]
        sizes = [(slab.slots, slab.group) for slab in self.slabs]
        largest = self._ladder[0] * self._programs.devices
        for slab in list(self.slabs):
            many = slab.slots < largest and sizes.count((slab.slots, slab.group)) >= MANY
            sparse = slab.used * SPARSE <= slab.slots and slab.slots > self._programs.devices
            if many or sparse or not slab.used:
                self.drop(slab)

    def _take_free(
        self, parts: Sequence[MeshPart], numbers: Sequence[int], missing: list[tuple[int, int]], group: int
    ) -> list[tuple[int, int]]:
        """Puts pages into free slots, one on each device at a time; those that are left."""
        left = list(reversed(missing))
        for slab in (each for each in self.slabs if each.group == group):
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
        self,
        parts: Sequence[MeshPart],
        numbers: Sequence[int],
        missing: list[tuple[int, int]],
        room: int | None,
        group: int,
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
            slab = self._slab(fit[0] * devices, [(i, parts[i], page) for i, page in chosen], group)
            for slot, (i, page) in enumerate(chosen):
                self._place(slab, slot, numbers[i], page)
            self.slabs.append(slab)
            at += len(chosen)
        return missing[at:]

    def _place(self, slab: Slab, slot: int, number: int, page: int) -> None:
        slab.take(slot, number, page)
        self._owners[number].pages[page] = slab, slot

    def _slab(self, slots: int, pages: Sequence[tuple[int, MeshPart, int]], group: int) -> Slab:
        """A slab whose first slots hold pages of parts, of nobody yet."""
        programs, size = self._programs, slots // self._programs.devices
        held = []
        for device in programs.local:
            here = enumerate(pages[device * size : (device + 1) * size])
            held.append(self._held(size, [(slot, part, page) for slot, (_, part, page) in here]))
        arrays = tuple(programs.spread(each, programs.local) for each in zip(*held, strict=True))
        nobody, nothing = np.full(slots, NOBODY), np.zeros(slots, np.int64)
        slab = Slab(slots, group, arrays, nobody, nothing, nothing.copy())
        for slot, (_, part, page) in enumerate(pages):
            slab.page[slot], slab.filled[slot] = page, self._rows_in(part, page)
        return slab

    def _write(self, slab: Slab, pages: Sequence[tuple[int, MeshPart, int]]) -> None:
        """Writes pages of parts into slots, no two of one device."""
        programs, size = self._programs, slab.slots // self._programs.devices
        written = {slot // size: (slot % size, part, page) for slot, part, page in pages}
        slots = np.full(programs.devices, size, np.int32)
        held = []
        for device in programs.local:
            some = []
            if device in written:
                slots[device], part, page = written[device]
                some.append((0, part, page))
            held.append(self._held(1, some))
        new = [programs.spread(each, programs.local) for each in zip(*held, strict=True)]
        told = programs.spread([slots[device : device + 1] for device in programs.local], programs.local)
        slab.arrays = programs.write(slab.arrays, new, told)
        for slot, part, page in pages:
            slab.filled[slot] = self._rows_in(part, page)

    def _scanned(self, slab: Slab, parts: Sequence[MeshPart], place: dict[int, int]) -> Scanned | None:
        layouts = {i: self.layout(parts[i]) for i in place.values()}
        return slab.scanned(self._programs, self.shape.rows, parts, place, layouts)

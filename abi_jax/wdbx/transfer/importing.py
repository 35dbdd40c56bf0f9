"""Rows stream in: checked, gathered, sorted and written as steps, which one record makes visible, all or none.

docs/wdbx-format.md, "Operations", import.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.wdbx.arrive import Written, shared_rows, write_rows
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.ids import text_column
from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.segment import segment_arrays
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.transfer.piece import Checked, check
from abi_jax.wdbx.transfer.sources import Source

STEP_BYTES = 64 << 20  # of vectors and metadata in a step
AT_ONCE = 2  # steps that are written at once: while one waits for the disk, another one is hashed
DUPLICATES = ("error", "last")


class Steps:
    """Steps of an import as they are written, and rows of them that later ones have again."""

    def __init__(self, storage: Storage, spec: CollectionSpec, duplicates: str) -> None:
        if duplicates not in DUPLICATES:
            raise InputError(f"duplicates {duplicates!r}: expected one of {', '.join(DUPLICATES)}")
        self.storage = storage
        self.spec = spec
        self.duplicates = duplicates
        self.written: list[Written] = []
        self.replaced: dict[int, np.ndarray] = {}
        self._numbers: list[int] = []
        self._rooms: list[np.ndarray] = []  # memory of vectors that were written: new memory takes longer to fill

    def number(self) -> int:
        """The number of the next step."""
        number = self.storage.next_step(reserve=True)
        self._numbers.append(number)
        return number

    def write(self, number: int, source: str, rows: list[Checked]) -> Written:
        """Writes step `number` of rows, which it takes out of the list.

        Raises `InputError` where an id is in it twice and may not be. Several threads may write at once.
        """
        ids, vectors, metadata = _joined(self.spec, rows)
        rows.clear()
        room = self._room(vectors)
        arrays = self._arrays(ids, vectors, metadata, room)
        if _twice(self.spec, arrays):
            kept = self._once(source, ids)
            del arrays
            ids = ids[kept] if isinstance(ids, np.ndarray) else ids.take(pa.array(kept))
            metadata = metadata.take(pa.array(kept)) if self.spec.schema else metadata
            arrays = self._arrays(ids, vectors[kept], metadata, room)
        del ids, vectors, metadata
        made = write_rows(self.storage, number, self.spec, arrays)
        self._rooms.append(room)
        return made

    def _room(self, vectors: np.ndarray) -> np.ndarray:
        try:
            room = self._rooms.pop()
        except IndexError:
            room = vectors[:0]
        return room if len(room) >= len(vectors) else np.empty_like(vectors)

    def add(self, source: str, made: Written) -> None:
        """Adds a step, written, behind those that were added. Raises `InputError` where an id is there twice."""
        for each in self.written:
            again = shared_rows(each.segment, made.segment)
            if len(again) and self.duplicates == "error":
                raise InputError(f"{source}: id {each.segment.ids.take(again[:1])[0]!r} comes twice; {_HINT}")
            if len(again):
                before = self.replaced.get(each.segment.number, np.zeros(0, np.int64))
                self.replaced[each.segment.number] = np.union1d(before, again)
        self.written.append(made)

    def _arrays(
        self, ids: pa.Array | np.ndarray, vectors: np.ndarray, metadata: pa.Table, room: np.ndarray
    ) -> dict[str, np.ndarray]:
        return segment_arrays(self.spec, ids, vectors, np.zeros(len(ids), np.int64), metadata, room)[0]

    def _once(self, source: str, ids: pa.Array | np.ndarray) -> np.ndarray:
        """The last row of each id. Raises `InputError` with an id that is there twice, where none may be."""
        table = pa.table({"id": pa.array(ids) if isinstance(ids, np.ndarray) else ids, "row": np.arange(len(ids))})
        if self.duplicates == "error":
            counted = table.group_by("id").aggregate([("row", "count"), ("row", "max")])
            twice = counted.filter(pc.greater(counted["row_count"], 1))
            again = twice["id"][int(np.argmin(np.asarray(twice["row_max"])))].as_py()
            raise InputError(f"{source}: id {again!r} comes twice; {_HINT}")
        return np.sort(np.asarray(table.group_by("id").aggregate([("row", "max")])["row_max"]))

    def done(self) -> None:
        """The steps are the store's: or garbage, where nothing names them."""
        self.storage.reserved -= set(self._numbers)

    def give_up(self, check: Callable[[], None]) -> None:
        """Takes away what was written. What cannot be taken away is garbage.

        check: raises `WdbxError` where this process no longer writes to the store. Then the next writer may have taken
        the steps for garbage, and have steps of its own by their numbers: nothing is taken away.
        """
        for number in self._numbers:
            with contextlib.suppress(OSError, WdbxError):
                check()
                self.storage.delete(step_name(number))
        self.done()


_HINT = 'expected each id once, or duplicates="last" to keep the last row of each'


def _twice(spec: CollectionSpec, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether an id of a step, whose ids are sorted, is there twice."""
    if spec.ids == "int":
        return bool((arrays["ids"][1:] == arrays["ids"][:-1]).any())
    ends = arrays["id_ends"].astype(np.int64)
    parts = [pa.py_buffer(np.concatenate([[0], ends])), pa.py_buffer(arrays["id_bytes"])]
    texts = pa.Array.from_buffers(pa.large_binary(), len(ends), [None, *parts])
    return bool(pc.any(pc.equal(texts[1:], texts[:-1])).as_py())


def _joined(spec: CollectionSpec, rows: list[Checked]) -> tuple[pa.Array | np.ndarray, np.ndarray, pa.Table]:
    ids = (
        np.concatenate([np.asarray(each.ids) for each in rows])
        if spec.ids == "int"
        else pa.concat_arrays([text_column(each.ids) for each in rows])
    )
    return (
        ids,
        _stacked([each.vectors for each in rows]),
        pa.Table.from_batches([each.metadata for each in rows], schema=spec.arrow_schema),
    )


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all parts; where they lie one behind the other in one array, without a copy."""
    first = parts[0]
    at = first.ctypes.data
    for each in parts:
        if each.base is None or each.base is not first.base or each.ctypes.data != at or not each.flags.c_contiguous:
            return np.concatenate(parts)
        at += each.nbytes
    rows = sum(map(len, parts))
    return np.lib.stride_tricks.as_strided(first, (rows, *first.shape[1:]), writeable=False)


def stream(steps: Steps, source: Source, progress: bool) -> int:
    """Writes all rows of a source as steps; how many.

    Steps are written while the next one is read, and while others wait for the disk. Raises `InputError` with what is
    wrong first, in the order of rows.
    """
    rows = 0
    going: deque[tuple[str, Future[Written]]] = deque()

    def settle(most: int) -> None:
        """Waits until at most so many steps are written, or wait for it."""
        while len(going) > most:
            name, made = going.popleft()
            steps.add(name, made.result())

    with (
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="wdbx-import") as pool,
        tqdm(total=source.rows, unit=" rows", unit_scale=True, disable=not progress, desc="import") as bar,
    ):
        for name, batch in _batches(steps.spec, source, bar, lambda: settle(0)):
            rows += sum(map(len, batch))
            going.append((name, pool.submit(steps.write, steps.number(), name, batch)))
            del batch
            settle(AT_ONCE)
        settle(0)
    return rows


def _batches(
    spec: CollectionSpec, source: Source, bar: Iterable[Any], settle: Callable[[], None]
) -> Iterator[tuple[str, list[Checked]]]:
    """Rows for a step each. settle: raises what is wrong with those before, where the next ones are."""
    held: list[Checked] = []
    size = 0
    name = ""
    for piece in source.pieces:
        name = piece.source
        try:
            checked = check(spec, piece)
        except InputError:
            settle()
            raise
        if len(checked):
            held.append(checked)
            size += checked.vectors.nbytes + checked.metadata.nbytes
        bar.update(len(checked))  # type: ignore[attr-defined]
        if size >= STEP_BYTES:
            yield name, held
            held, size = [], 0
    if held:
        yield name, held

"""Rows stream in: checked, gathered, sorted and written as steps, which one record makes visible, all or none.

docs/wdbx-format.md, "Operations", import.
"""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.wdbx.arrive import Written, shared_rows, write_rows
from abi_jax.wdbx.ids import text_column
from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.segment import segment_arrays
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.transfer.piece import Checked, check
from abi_jax.wdbx.transfer.sources import Source

STEP_BYTES = 64 << 20  # of vectors and metadata in a step; three times as much is in memory
DUPLICATES = ("error", "last")


class Steps:
    """Steps of an import as they are written, and rows of them that later ones have again."""

    def __init__(self, storage: LocalStorage, spec: CollectionSpec, duplicates: str) -> None:
        if duplicates not in DUPLICATES:
            raise InputError(f"duplicates {duplicates!r}: expected one of {', '.join(DUPLICATES)}")
        self.storage = storage
        self.spec = spec
        self.duplicates = duplicates
        self.written: list[Written] = []
        self.replaced: dict[int, np.ndarray] = {}
        self._numbers: list[int] = []

    def write(self, source: str, rows: list[Checked]) -> None:
        """Writes a step of rows. Raises `InputError` where an id is there twice and may not be."""
        ids, vectors, metadata = _joined(self.spec, rows)
        ids, kept = self._once(source, ids)
        if kept is not None:
            vectors, metadata = vectors[kept], metadata.take(pa.array(kept)) if self.spec.schema else metadata
        arrays, _, _ = segment_arrays(self.spec, ids, vectors, np.zeros(len(ids), np.int64), metadata)
        number = self.storage.next_step(reserve=True)
        self._numbers.append(number)
        made = write_rows(self.storage, number, self.spec, arrays)
        for each in self.written:
            again = shared_rows(each.segment, made.segment)
            if len(again) and self.duplicates == "error":
                raise InputError(f"{source}: id {each.segment.ids.take(again[:1])[0]!r} comes twice; {_HINT}")
            if len(again):
                before = self.replaced.get(each.segment.number, np.zeros(0, np.int64))
                self.replaced[each.segment.number] = np.union1d(before, again)
        self.written.append(made)

    def _once(self, source: str, ids: pa.Array | np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Ids without those that come again later, and the rows of what is left; None for all rows."""
        as_array = pa.array(ids) if isinstance(ids, np.ndarray) else ids
        if isinstance(ids, np.ndarray):
            once = len(ids) < 2 or bool((np.diff(np.sort(ids)) != 0).all())
        else:
            once = (
                len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py() or pc.count_distinct(ids).as_py() == len(ids)
            )
        if once:
            return ids, None
        table = pa.table({"id": as_array, "row": np.arange(len(ids))})
        if self.duplicates == "error":
            counted = table.group_by("id").aggregate([("row", "count"), ("row", "max")])
            twice = counted.filter(pc.greater(counted["row_count"], 1))
            again = twice["id"][int(np.argmin(np.asarray(twice["row_max"])))].as_py()
            raise InputError(f"{source}: id {again!r} comes twice; {_HINT}")
        kept = np.sort(np.asarray(table.group_by("id").aggregate([("row", "max")])["row_max"]))
        return (ids[kept] if isinstance(ids, np.ndarray) else ids.take(pa.array(kept))), kept

    def done(self) -> None:
        """The steps are the store's: or garbage, where nothing names them."""
        self.storage.reserved -= set(self._numbers)

    def give_up(self) -> None:
        """Takes away what was written. What cannot be taken away is garbage."""
        for number in self._numbers:
            with contextlib.suppress(OSError):
                self.storage.delete(step_name(number))
        self.done()


_HINT = 'expected each id once, or duplicates="last" to keep the last row of each'


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
    """Writes all rows of a source as steps; how many. One step is written while the next one is read."""
    rows = 0
    with (
        ThreadPoolExecutor(1, thread_name_prefix="wdbx-import") as pool,
        tqdm(total=source.rows, unit=" rows", unit_scale=True, disable=not progress, desc="import") as bar,
    ):
        going: Future[None] | None = None
        for name, batch in _batches(steps.spec, source, bar):
            rows += sum(map(len, batch))
            if going is not None:
                going.result()
            going = pool.submit(steps.write, name, batch)
            del batch
        if going is not None:
            going.result()
    return rows


def _batches(spec: CollectionSpec, source: Source, bar: Iterable[Any]) -> Iterator[tuple[str, list[Checked]]]:
    held: list[Checked] = []
    size = 0
    name = ""
    for piece in source.pieces:
        name = piece.source
        checked = check(spec, piece)
        if len(checked):
            held.append(checked)
            size += checked.vectors.nbytes + checked.metadata.nbytes
        bar.update(len(checked))  # type: ignore[attr-defined]
        if size >= STEP_BYTES:
            yield name, held
            held, size = [], 0
    if held:
        yield name, held

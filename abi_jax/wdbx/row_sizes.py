"""How much rows of metadata take, and runs of them that stay below a bound: Arrow's texts end at 2 GiB in a column."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def row_bytes(metadata: pa.Table | pa.RecordBatch | pa.ChunkedArray) -> np.ndarray:
    """About how many bytes each row takes, int64 `[n]`; never less than its texts."""
    columns = [metadata] if isinstance(metadata, pa.ChunkedArray) else metadata.columns
    made = np.full(len(metadata), 8 * len(columns), np.int64)
    for column in columns:
        start = 0
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            made[start : start + len(chunk)] += _value_bytes(chunk)
            start += len(chunk)
    return made


def _value_bytes(values: pa.Array) -> np.ndarray:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of = np.asarray(pc.list_parent_indices(values))
        return np.bincount(of, 8 + _value_bytes(pc.list_flatten(values)), len(values)).astype(np.int64)
    if any(each(kind) for each in _TEXTS):
        return np.asarray(pc.fill_null(pc.binary_length(values), 0)).astype(np.int64)
    if pa.types.is_fixed_size_list(kind):
        return np.full(len(values), 8 * kind.list_size, np.int64)
    return np.zeros(len(values), np.int64)


_TEXTS = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)


def runs(sizes: np.ndarray, most_rows: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of rows, one after the other, of at most so many rows and bytes, or of one row that has more.

    sizes: bytes of each row, int64 `[n]`.
    """
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + most_bytes, "right"))
        stop = max(start + 1, min(stop, start + most_rows))
        yield start, stop
        start = stop

"""Digests of rows, and the tree over them: what a segment holds, however it is stored.

docs/wdbx-format.md, "Digests and proofs".
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from abi_jax.lineage_digest import HASH, sha256
from abi_jax.wdbx.ids import text_column
from abi_jax.wdbx.rows import Ids
from abi_jax.wdbx.spec import CollectionSpec

FANOUT = 64  # digests that are hashed together: one hash for 2 KiB is as fast as SHA-256 is
PADDED = 64  # bytes of varying width that are hashed with the rest: longer ones are hashed behind it
FEW_ROWS = 2048  # that are hashed one by one in less time than it takes to compile what hashes them at once
AT_ONCE = 1024  # rows whose messages are laid out together, to be hashed one by one
DOMAIN = b"abi-jax/wdbx row\0"


@dataclass(frozen=True)
class Messages:
    """What is hashed of rows, one part behind the other, where each row's bytes lie together.

    fixed: uint8 `[n, w]`, at least one; behind them `varying`, large binary `[n]` without nulls.
    """

    fixed: Sequence[np.ndarray]
    varying: Sequence[pa.Array]

    def __len__(self) -> int:
        return len(self.fixed[0])

    def slice(self, start: int, stop: int) -> "Messages":
        """Those of rows `start` to `stop`."""
        return Messages([each[start:stop] for each in self.fixed], [each[start:stop] for each in self.varying])

    def behind(self) -> pa.Array | None:
        """What is of varying width, joined; None for nothing."""
        if len(self.varying) > 1:
            return pc.binary_join_element_wise(*self.varying, pa.scalar(b"", pa.large_binary()))
        return self.varying[0] if self.varying else None

    def joined(self) -> list[bytes]:
        """The messages, whole."""
        behind = self.behind()
        tails = [b""] * len(self) if behind is None else behind.to_pylist()
        heads = np.concatenate(self.fixed, axis=1)
        return [head.tobytes() + tail for head, tail in zip(heads, tails, strict=True)]


def row_messages(
    spec: CollectionSpec,
    ids: Ids | pa.Array,
    since: np.ndarray,
    vectors: np.ndarray,
    metadata: pa.Table,
    salts: np.ndarray | None = None,
) -> Messages:
    """What is hashed of every row.

    since: versions from the segment's first to the row's birth. salts: uint8 `[n, 16]` of rows that are encrypted.

    The domain, the salt, since (uint64), the vector, of every column a byte (1 where there is a value) and its value of
    fixed width or the count of bytes or elements (uint32); then everything of variable width: the id (of type int: 8
    bytes), texts, elements of lists (texts after their counts of bytes).
    """
    count = len(since)
    fixed: list[np.ndarray] = [
        np.broadcast_to(np.frombuffer(DOMAIN, np.uint8), (count, len(DOMAIN))),
        *([] if salts is None else [_bytes(salts)]),
        _bytes(since.astype("<u8")),
        _bytes(vectors),
    ]
    text_ids = text_column(ids) if spec.ids == "str" else None
    varying: list[pa.Array] = [] if text_ids is None else [text_ids.cast(pa.large_binary())]
    fixed.append(
        _bytes(np.asarray(ids, "<i8")) if text_ids is None else _bytes(np.asarray(pc.binary_length(text_ids), "<u4"))
    )
    for name, _ in spec.schema:
        column = metadata[name].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        fixed.append(_bytes(np.asarray(column.is_valid()).astype(np.uint8)))
        width, parts = _column(column)
        fixed.append(width)
        varying += parts
    return Messages(fixed, varying)


def _column(column: pa.Array) -> tuple[np.ndarray, list[pa.Array]]:
    """A column's part of fixed width, uint8 `[n, w]`, and its parts of variable width."""
    kind = column.type
    if pa.types.is_list(kind):
        column = pc.fill_null(column, pa.scalar([], kind))
        lengths = _bytes(np.asarray(pc.list_value_length(column), "<u4"))
        offsets = np.asarray(column.offsets).astype(np.int64)
        values = column.values
        if pa.types.is_string(kind.value_type):
            values = pc.fill_null(values, "")
            sizes = np.asarray(pc.binary_length(values), "<u4")
            ends = np.asarray(values.offsets if hasattr(values, "offsets") else _offsets(values)).astype(np.int64)
            texts = pa.py_buffer(values.buffers()[2] or b"")
            return lengths, [_slices(offsets * 4, sizes), _binary(ends[offsets], texts)]
        return lengths, [_slices(offsets * 8, np.asarray(pc.fill_null(values, 0), "<i8"))]
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        filled = pc.fill_null(column, "" if pa.types.is_string(kind) else b"")
        return _bytes(np.asarray(pc.binary_length(filled), "<u4")), [filled.cast(pa.large_binary())]
    if pa.types.is_boolean(kind):
        return _bytes(np.asarray(pc.fill_null(column, False)).astype(np.uint8)), []
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    return _bytes(np.asarray(pc.fill_null(column, 0)).astype(f"<{'f8' if pa.types.is_float64(kind) else 'i8'}")), []


def _offsets(values: pa.Array) -> np.ndarray:
    return np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]


def _slices(ends: np.ndarray, values: np.ndarray) -> pa.Array:
    return _binary(ends, pa.py_buffer(np.ascontiguousarray(values)))


def _binary(offsets: np.ndarray, data: pa.Buffer) -> pa.Array:
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), data])


def _bytes(values: np.ndarray) -> np.ndarray:
    """`[n, ...]` as uint8 `[n, bytes]`."""
    values = np.ascontiguousarray(values)
    return values.reshape(len(values), -1).view(np.uint8)


def row_digests(messages: Messages) -> np.ndarray:
    """SHA-256 of every message, uint8 `[n, 32]`."""
    if len(messages) >= FEW_ROWS and (many := _many()) is not None:
        return many(messages.fixed, messages.varying, len(messages))
    starts = range(0, len(messages), AT_ONCE)
    made = b"".join([each for start in starts for each in _one_by_one(messages.slice(start, start + AT_ONCE))])
    return np.frombuffer(made, np.uint8).reshape(-1, HASH)


@cache
def _many() -> Callable[[Sequence[np.ndarray], Sequence[pa.Array], int], np.ndarray] | None:
    """What hashes many messages in one call, where it can be had."""
    if find_spec("llvmlite") is None:
        return None
    from abi_jax.wdbx import sha256

    return sha256.hash_rows if sha256.there() else None


def _one_by_one(messages: Messages) -> list[bytes]:
    fixed, column, one = np.concatenate(messages.fixed, axis=1), messages.behind(), hashlib.sha256
    count, width = fixed.shape
    heads = fixed.reshape(-1).data
    if column is None:
        return [one(heads[at : at + width]).digest() for at in range(0, count * width, width)]
    ends = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + count + 1].tolist()
    tails = memoryview(column.buffers()[2] or b"")
    sizes = np.diff(ends)
    if len(ends) > 1 and sizes.max() <= PADDED:
        whole = _padded(fixed, np.frombuffer(tails, np.uint8), np.asarray(ends[:-1]), int(sizes.max()))
        data, step = whole.reshape(-1).data, whole.shape[1]
        places = zip(range(0, count * step, step), (sizes + width).tolist(), strict=True)
        return [one(data[at : at + size]).digest() for at, size in places]
    digests = []
    for row, (start, end) in enumerate(pairwise(ends)):
        hashed = one(heads[row * width : (row + 1) * width])
        hashed.update(tails[start:end])
        digests.append(hashed.digest())
    return digests


def _padded(fixed: np.ndarray, tails: np.ndarray, starts: np.ndarray, longest: int) -> np.ndarray:
    """Rows of `fixed`, each with what begins at its start in `tails` behind it, and perhaps with more than is its."""
    width = fixed.shape[1]
    made = np.empty((len(fixed), width + longest), np.uint8)
    made[:, :width] = fixed
    if longest:
        made[:, width:] = tails[np.minimum(starts[:, None] + np.arange(longest), len(tails) - 1)]
    return made


def tree_levels(digests: np.ndarray) -> list[np.ndarray]:
    """All levels of the tree over digests uint8 `[n, 32]`, from the leaves to the root, which stands alone."""
    levels = [digests]
    while len(levels[-1]) > 1:
        whole = len(levels[-1]) // FANOUT
        made = _nodes(levels[-1][: whole * FANOUT].reshape(whole, FANOUT * HASH))
        if rest := levels[-1][whole * FANOUT :].tobytes():
            made = np.concatenate([made, np.frombuffer(sha256("wdbx node", rest), np.uint8)[None]])
        levels.append(made)
    return levels


def _nodes(blocks: np.ndarray) -> np.ndarray:
    """The digests of nodes over digests uint8 `[n, 64 * 32]`."""
    if len(blocks) * FANOUT >= FEW_ROWS and (many := _many()) is not None:
        domain = np.frombuffer(b"abi-jax/wdbx node\0", np.uint8)
        return many([np.broadcast_to(domain, (len(blocks), len(domain))), blocks], [], len(blocks))
    made = b"".join([sha256("wdbx node", each.data) for each in blocks])
    return np.frombuffer(made, np.uint8).reshape(-1, HASH)


def tree_root(digests: np.ndarray, first: int) -> bytes:
    """The root of the tree, bound to how many leaves it has and the version they count from; of none, too."""
    return bound_root(tree_levels(digests)[-1].tobytes(), len(digests), first)


def bound_root(root: bytes, count: int, first: int) -> bytes:
    """The root of a tree of `count` leaves whose rows are born at `first` and later."""
    return sha256("wdbx rows", count.to_bytes(8, "little"), first.to_bytes(8, "little"), root)


@dataclass(frozen=True)
class Path:
    """Where a leaf stands in a tree of `count` leaves, and the digests beside it, from the leaves up.

    first: the version that births in the tree count from.
    """

    row: int
    count: int
    first: int
    beside: tuple[bytes, ...]

    def root(self, digest: bytes) -> bytes | None:
        """The root that a leaf `digest` at this place leads to; None where it leads to none."""
        at = self.row
        for siblings in self.beside:
            inside = at % FANOUT
            if siblings[inside * HASH : (inside + 1) * HASH] != digest:
                return None
            digest, at = sha256("wdbx node", siblings), at // FANOUT
        return bound_root(digest, self.count, self.first) if at == 0 else None


def tree_path(levels: Sequence[np.ndarray], row: int, first: int) -> Path:
    """The path of leaf `row`."""
    beside, at = [], row
    for level in levels[:-1]:
        start = at - at % FANOUT
        beside.append(level[start : start + FANOUT].tobytes())
        at //= FANOUT
    return Path(row, len(levels[0]), first, tuple(beside))

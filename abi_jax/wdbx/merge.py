"""Making segments of a tail and of older segments, and choosing which: sizes grow geometrically, up to a bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.wdbx.row_sizes import row_bytes, runs
from abi_jax.wdbx.segment import Segment, segment_arrays
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.tail import Tail

LARGEST = 256 << 20  # bytes of vectors in a segment that is made
LARGEST_METADATA = 512 << 20  # bytes of metadata in one: Arrow's texts end at 2 GiB in a column
GROWTH = 2  # a segment is merged when it is at most so many times as large as what it is merged with
MANY = 8  # segments of about one size: so many are merged, though nothing new is merged with them
DEAD = 0.3  # a segment is written anew when so much of it can no longer be read


@dataclass(frozen=True)
class Source:
    """Rows that go into a new segment: `rows` of a segment, or of a tail."""

    of: Segment | Tail
    rows: np.ndarray

    @property
    def ids(self) -> list[Any]:
        """Their ids."""
        if isinstance(self.of, Tail):
            return [self.of.ids[row] for row in self.rows.tolist()]
        ids = self.of.ids.take(self.rows)
        return ids if isinstance(ids, list) else ids.tolist()

    def metadata(self) -> pa.Table:
        """Their metadata."""
        if not self.of.spec.schema:
            return self.of.spec.arrow_schema.empty_table()
        if isinstance(self.of, Tail):
            return self.of.metadata_of(self.rows)
        return self.of.metadata.take(pa.array(self.rows))


@dataclass(frozen=True)
class Merged:
    """Arrays of a step, and where each of its rows was: number of the source, and row in it."""

    arrays: dict[str, np.ndarray]
    first: int
    source: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Part:
    """What becomes one segment: rows `start` to `stop` of a tail, and segments."""

    start: int
    stop: int
    merged: tuple[Segment, ...] = ()


def kept(of: Segment | Tail, start: int, stop: int, horizon: int) -> Source:
    """Of rows `start` to `stop` those that some version from `horizon` on can still see."""
    return Source(of, start + np.flatnonzero(of.died[start:stop] > horizon))


def merge(spec: CollectionSpec, sources: Sequence[Source]) -> Merged | None:
    """One segment of all rows of the sources; None where there are none."""
    if not sum(len(each.rows) for each in sources):
        return None
    vectors = np.concatenate([np.asarray(each.of.vectors[each.rows]) for each in sources])
    born = np.concatenate([each.of.born[each.rows] for each in sources])
    ids = [id_ for each in sources for id_ in each.ids]
    metadata = pa.concat_tables([each.metadata() for each in sources])
    arrays, order, first = segment_arrays(spec, ids, vectors, born, metadata)
    source = np.repeat(np.arange(len(sources)), [len(each.rows) for each in sources])
    row = np.concatenate([each.rows for each in sources])
    return Merged(arrays, first, source[order], row[order])


def parts(spec: CollectionSpec, tail: Tail, segments: Sequence[Segment], horizon: int, everything: bool) -> list[Part]:
    """What is to be made of the rows of a tail and of segments, at least one part; the tail's rows in their order.

    Segments are those that are worth it, so that they stay few and what is dead does not stay long; or `everything`.
    A part is of at most `LARGEST` bytes of vectors and `LARGEST_METADATA` of metadata, unless a row or a segment that
    is there has more: so memory is bounded.
    """
    *whole, (start, stop, metadata) = _cut(spec, tail)
    rest = _Size(stop - start, metadata)
    sizes = {each.number: _size(each, horizon) for each in segments}
    chosen = sorted(segments, key=lambda each: sizes[each.number].rows) if everything else []
    if not everything:
        chosen = _choose(spec, segments, sizes, rest)
    groups: list[list[Segment]] = [[]]
    size = rest
    for each in chosen:
        if size.rows and not (size + sizes[each.number]).fits(spec):
            groups.append([])
            size = _Size(0, 0)
        groups[-1].append(each)
        size += sizes[each.number]
    return [
        *(Part(*each[:2]) for each in whole),
        Part(start, stop, tuple(groups[0])),
        *(Part(stop, stop, tuple(group)) for group in groups[1:]),
    ]


@dataclass(frozen=True)
class _Size:
    """Of a segment, as it is or will be: rows, and bytes of metadata."""

    rows: int
    metadata: int

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(self.rows + other.rows, self.metadata + other.metadata)

    def fits(self, spec: CollectionSpec) -> bool:
        """Whether a segment may be of this size."""
        return self.rows <= _most_rows(spec) and self.metadata <= LARGEST_METADATA


def _most_rows(spec: CollectionSpec) -> int:
    return max(1, LARGEST // (spec.dim * spec.numpy_dtype.itemsize))


def _size(segment: Segment, horizon: int) -> _Size:
    """Rows that some version from `horizon` on can still see; of metadata all, since these rows may have most of it."""
    return _Size(int(np.count_nonzero(segment.died > horizon)), segment.metadata_bytes)


def _choose(spec: CollectionSpec, segments: Sequence[Segment], sizes: Mapping[int, _Size], new: _Size) -> list[Segment]:
    """The segments that are worth to be merged with `new`."""
    chosen = [each for each in segments if len(each) - sizes[each.number].rows > DEAD * len(each)]
    size = sum((sizes[each.number] for each in chosen), new)
    for each in sorted((each for each in segments if each not in chosen), key=len):
        more = size + sizes[each.number]
        if size.rows == 0 or len(each) > GROWTH * size.rows or not more.fits(spec):
            break
        chosen.append(each)
        size = more
    return chosen + _alike(spec, [each for each in segments if each not in chosen])


def crowded(spec: CollectionSpec, segments: Sequence[Segment]) -> bool:
    """Whether segments are so many of about one size, as many imports leave them, that some are worth to be merged."""
    return bool(_alike(spec, segments))


def _alike(spec: CollectionSpec, segments: Sequence[Segment]) -> list[Segment]:
    """The smallest `MANY` segments, or more, of which each is not much larger than those before it are together."""
    run, size = list[Segment](), _Size(0, 0)
    for each in sorted(segments, key=len):
        whole = _Size(len(each), each.metadata_bytes)  # though some of it may be dead: then it is merged sooner
        more = size + whole
        if not more.fits(spec):
            break
        if whole.rows > GROWTH * size.rows:
            if len(run) >= MANY:
                break
            run, more = [], whole
        run.append(each)
        size = more
    return run if len(run) >= MANY else []


def _cut(spec: CollectionSpec, tail: Tail) -> list[tuple[int, int, int]]:
    """Runs of a tail's rows that fit into a segment each, with their bytes of metadata; one where there are none."""
    if _Size(tail.count, tail.metadata_bytes).fits(spec):
        return [(0, tail.count, tail.metadata_bytes)]
    sizes = row_bytes(tail.metadata(tail.count)) if spec.schema else np.zeros(tail.count, np.int64)
    made = runs(sizes, _most_rows(spec), LARGEST_METADATA)
    return [(start, stop, int(sizes[start:stop].sum())) for start, stop in made]

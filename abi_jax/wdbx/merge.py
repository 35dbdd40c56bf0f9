"""Making one segment of a tail and of older segments, and choosing which: sizes grow geometrically."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.wdbx.segment import Segment, segment_arrays
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.tail import Tail

LARGEST = 256 << 20  # bytes of vectors in a segment that is made by merging
GROWTH = 2  # a segment is merged when it is at most so many times as large as what it is merged with
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
        whole = self.of.metadata(self.of.count) if isinstance(self.of, Tail) else self.of.metadata
        return whole.take(pa.array(self.rows)) if self.of.spec.schema else whole.slice(0, 0)


@dataclass(frozen=True)
class Merged:
    """Arrays of a step, and where each of its rows was: number of the source, and row in it."""

    arrays: dict[str, np.ndarray]
    first: int
    source: np.ndarray
    row: np.ndarray


def kept(of: Segment | Tail, count: int, horizon: int) -> Source:
    """Of the first `count` rows those that some version from `horizon` on can still see."""
    return Source(of, np.flatnonzero(of.died[:count] > horizon))


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


def choose(spec: CollectionSpec, segments: Sequence[Segment], new_rows: int, horizon: int) -> list[Segment]:
    """The segments to merge with `new_rows` rows, so that they stay few and what is dead does not stay long."""
    chosen = [each for each in segments if np.count_nonzero(each.died <= horizon) > DEAD * len(each)]
    rows = new_rows + sum(np.count_nonzero(each.died > horizon) for each in chosen)
    limit = LARGEST // (spec.dim * spec.numpy_dtype.itemsize)
    for each in sorted((each for each in segments if each not in chosen), key=len):
        if rows == 0 or len(each) > GROWTH * rows or rows + len(each) > limit:
            break
        chosen.append(each)
        rows += len(each)
    return chosen


def grouped(spec: CollectionSpec, segments: Sequence[Segment]) -> list[list[Segment]]:
    """All segments, in groups that are merged each into one: at most `LARGEST` together, so that memory is bounded."""
    limit = LARGEST // (spec.dim * spec.numpy_dtype.itemsize)
    groups: list[list[Segment]] = [[]]
    rows = 0
    for each in sorted(segments, key=len):
        if groups[-1] and rows + len(each) > limit:
            groups.append([])
            rows = 0
        groups[-1].append(each)
        rows += len(each)
    return groups

"""What a manifest says of a segment, so that nobody can change it: digests of its rows.

docs/wdbx-format.md, "Digests and proofs".
"""

import numpy as np

from abi_jax.lineage_digest import HASH
from abi_jax.wdbx.digest import Messages, bound_root, row_digests, row_messages, tree_levels, tree_root
from abi_jax.wdbx.segment import Segment

HASHED_AT_ONCE = 32 << 20  # bytes of vectors that are hashed together


def segment_content(segment: Segment | None) -> bytes:
    """The root over a segment's rows as they are stored."""
    if segment is None:
        return tree_root(np.zeros((0, HASH), np.uint8), 0)
    return bound_root(rows_root(segment), len(segment), segment.first)


def rows_root(segment: Segment) -> bytes:
    """The root of the tree over a segment's rows alone."""
    return tree_levels(segment_digests(segment))[-1].tobytes()


def segment_digests(segment: Segment) -> np.ndarray:
    """The digest of every row of a segment that has any, uint8 `[n, 32]`."""
    step = max(1, HASHED_AT_ONCE // (segment.spec.dim * segment.spec.numpy_dtype.itemsize))
    starts = range(0, len(segment), step)
    return np.concatenate([row_digests(segment_messages(segment, start, start + step)) for start in starts])


def segment_messages(segment: Segment, start: int, stop: int) -> Messages:
    """What is hashed of rows `start` to `stop` of a segment."""
    stop = min(stop, len(segment))
    since = segment.born[start:stop] - segment.first
    metadata = segment.stored_metadata.slice(start, stop - start)
    vectors = np.asarray(segment.vectors[start:stop])
    salts = None if segment.salts is None else segment.salts[start:stop]
    return row_messages(segment.stored_spec, segment.ids.column(start, stop), since, vectors, metadata, salts)

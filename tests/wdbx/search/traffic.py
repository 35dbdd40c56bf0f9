"""Writes, deletes and queries as they come, for tests of what must not happen meanwhile."""

from collections.abc import Callable, Sequence

import numpy as np

from abi_jax.wdbx import Collection, Database


def mixed_traffic(
    db: Database,
    c: Collection,
    rng: np.random.Generator,
    vectors: Callable[[int, int], np.ndarray],
    rows: int,
    recalls: Sequence[float],
    count: int,
) -> None:
    """So many operations on a collection of `rows` numbered rows with a field `n`.

    vectors: of a seed, so many rows. Queries are filtered or not, of older versions or not, with one of the recalls.
    """
    for _ in range(count):
        some = np.unique(rng.integers(0, rows + 100, 9))
        kind = rng.random()
        if kind < 0.1:
            c.upsert(some, vectors(1, len(some)), {"n": (some % 7).tolist()})
        elif kind < 0.2:
            c.delete(some)
        else:
            where = {"n": {"$gte": int(rng.integers(0, 7))}} if kind < 0.5 else None
            at = max(db.version - int(rng.integers(0, 20)), 3) if kind < 0.6 else None
            wanted = float(rng.choice(recalls))
            c.query(vectors(int(rng.integers(1000)), int(rng.integers(1, 8))), 5, where, at, recall=wanted)

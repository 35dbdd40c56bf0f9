"""K-means on the devices of a mesh: each has some of the rows, all have the centroids, and sums meet once a turn.

Lloyd's (IEEE Trans. Inf. Theory 28, 1982), on a sample, and then every row's nearest centroid. Numbers of lists are
padded to powers of two, and rows come in chunks of one size, so that few programs serve segments of all sizes.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.wdbx.search.ivf import ITERATIONS, Lists, lists_of, num_lists, sampled
from abi_jax.wdbx.search.measure import Search, ask, measure
from abi_jax.wdbx.search.mesh_programs import AXIS, SPREAD, WHOLE, Arrays, Programs

SCORES_AT_ONCE = {"cpu": 1 << 22}  # of a device; elsewhere:
MOST_SCORES = 1 << 26
FEWEST_ROWS, MOST_ROWS = 128, 1 << 14  # of a chunk on a device
FARTHEST = 128  # rows that may become centroids of lists that are empty, in one turn


def make_lists(programs: Programs, metric: str, vectors: np.ndarray, find: Search) -> Lists:
    """Lists of `vectors` `[n, D]`, and what can be said of their recall. find: searches all of them."""
    centroids = cluster(programs, metric, vectors, num_lists(len(vectors)))
    lists = lists_of(metric, centroids, assign(programs, metric, vectors, centroids))
    return replace(lists, ranks=measure(lists, ask(lists, vectors, find)))


def cluster(programs: Programs, metric: str, vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` centroids of `vectors` `[n, D]`, float32 `[count, D]`; of length 1 under cosine.

    A list that is empty gets the row of the sample that is farthest from its centroid. Every process of a mesh gives
    the same rows, and gets the same centroids.
    """
    directions = metric == "cosine"
    sample, first = sampled(len(vectors), count, seed)
    unit = np.float32(1) if directions else _unit(vectors[sample])
    rows = _Rows(programs, directions, vectors, unit, count)
    chunks = list(rows.chunks(sample))
    begun = np.zeros((rows.lists, vectors.shape[1]), np.float32)
    begun[:count] = rows.read(sample[first])
    centroids, number = programs.copy(begun), programs.number(count)
    for _ in range(ITERATIONS):
        state = programs.call(("sums", rows.lists, begun.shape[1]), partial(_nothing, *begun.shape), (), SPREAD)
        for chunk in chunks:
            state = _add(programs, directions, chunk, centroids, number, state)
        key, form = ("centroids", directions, begun.shape), partial(_move, directions=directions)
        given = (*(SPREAD,) * 4, WHOLE, WHOLE)
        centroids = programs.call(key, form, given, WHOLE, *state, centroids, number)
    return np.asarray(centroids)[:count] * unit


def assign(programs: Programs, metric: str, vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroid, of `[L, D]`, that is nearest to each of `vectors` `[n, D]`, int32 `[n]`."""
    directions = metric == "cosine"
    unit = np.float32(1) if directions else _unit(centroids)
    rows = _Rows(programs, directions, vectors, unit, len(centroids))
    padded = np.zeros((rows.lists, centroids.shape[1]), np.float32)
    padded[: len(centroids)] = centroids / unit
    held, number = programs.copy(padded), programs.number(len(centroids))
    found: list[np.ndarray] = []
    going: list[jax.Array] = []
    for chunk in rows.chunks(np.arange(len(vectors))):
        key = ("assign", directions, chunk[0].shape, rows.lists)
        given = (SPREAD, WHOLE, WHOLE)
        going.append(programs.call(key, partial(_assign, directions=directions), given, WHOLE, chunk[0], held, number))
        found += [np.asarray(each) for each in going[:-1]]
        going = going[-1:]
    return np.concatenate([*found, *(np.asarray(each) for each in going)])[: len(vectors)]


class _Rows:
    """Rows as devices get them: float32, of length 1 where only their directions count, else in units of `unit`."""

    def __init__(self, programs: Programs, directions: bool, vectors: np.ndarray, unit: np.float32, count: int) -> None:
        self._programs, self._directions, self._vectors, self._unit = programs, directions, vectors, unit
        self.lists = 1 << (count - 1).bit_length()
        scores = SCORES_AT_ONCE.get(programs.platform, MOST_SCORES)
        self._most = max(FEWEST_ROWS, min(MOST_ROWS, scores // self.lists))

    def read(self, which: np.ndarray) -> np.ndarray:
        """Rows of numbers `which`."""
        in_a_row = len(which) > 0 and bool((np.diff(which) == 1).all())
        block = self._vectors[which[0] : which[-1] + 1] if in_a_row else self._vectors[which]
        block = np.asarray(block).astype(np.float32)
        if not self._directions:
            return np.asarray(block / self._unit)
        block = np.ldexp(block, -np.frexp(np.abs(block).max(axis=1, initial=0))[1][:, None])
        return np.asarray(block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None])

    def chunks(self, which: np.ndarray) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Rows of numbers `which`, `[D C, dim]`, and which of these there are, bool `[D C]`, split over devices.

        A process reads those of its own devices alone.
        """
        programs, each = self._programs, -(-len(which) // self._programs.devices)
        size = max(FEWEST_ROWS, min(self._most, 1 << (each - 1).bit_length()))
        for start in range(0, len(which), programs.devices * size):
            rows, there = [], []
            for device in programs.local:
                mine = which[start + device * size : start + (device + 1) * size]
                rows.append(np.zeros((size, self._vectors.shape[1]), np.float32))
                rows[-1][: len(mine)] = self.read(mine)
                there.append(np.arange(size) < len(mine))
            yield programs.spread(rows, programs.local), programs.spread(there, programs.local)


def _unit(vectors: np.ndarray) -> np.float32:
    """A power of two about as large as the largest number of some rows, so that float32 holds their squares."""
    top = np.abs(np.asarray(vectors).astype(np.float32)).max(initial=0)
    return np.ldexp(np.float32(1), np.clip(np.frexp(top)[1], -120, 120))


def _nearness(rows: jax.Array, centroids: jax.Array, count: jax.Array, directions: bool) -> jax.Array:
    """How near rows are to centroids, `[n, L]`, `x.c - |c|^2 / 2`: for a row, of which centroid that is most."""
    products = jnp.einsum("nd,ld->nl", rows, centroids, precision=jax.lax.Precision.HIGHEST)
    less = 0.0 if directions else jnp.square(centroids).sum(axis=1) / 2
    return jnp.where(jnp.arange(len(centroids)) < count, products - less, -jnp.inf)


def _nothing(lists: int, dim: int) -> Arrays:
    """Sums, counts, and the farthest rows with their distances, of no rows, on one device."""
    return (
        jnp.zeros((1, lists, dim), jnp.float32),
        jnp.zeros((1, lists), jnp.int32),
        jnp.zeros((1, FARTHEST, dim), jnp.float32),
        jnp.full((1, FARTHEST), -jnp.inf, jnp.float32),
    )


def _add(
    programs: Programs, directions: bool, chunk: Arrays, centroids: jax.Array, count: jax.Array, state: Arrays
) -> Arrays:
    key = ("add", directions, chunk[0].shape, centroids.shape)
    given = (SPREAD, SPREAD, WHOLE, WHOLE, *(SPREAD,) * 4)
    made: Arrays = programs.call(
        key, partial(_added, directions=directions), given, SPREAD, *chunk, centroids, count, *state, gone=(4, 5, 6, 7)
    )
    return made


def _added(
    rows: jax.Array,
    there: jax.Array,
    centroids: jax.Array,
    count: jax.Array,
    sums: jax.Array,
    counts: jax.Array,
    far: jax.Array,
    distances: jax.Array,
    *,
    directions: bool,
) -> Arrays:
    near = _nearness(rows, centroids, count, directions)
    number, best = jnp.argmax(near, axis=1), near.max(axis=1)
    lists = len(centroids)
    more = jax.ops.segment_sum(jnp.where(there[:, None], rows, 0), number, lists)
    many = jax.ops.segment_sum(there.astype(jnp.int32), number, lists)
    apart = jnp.where(there, jnp.square(rows).sum(axis=1) - 2 * best, -jnp.inf)
    distance, which = jax.lax.top_k(jnp.concatenate([distances[0], apart]), FARTHEST)
    row = jnp.concatenate([far[0], rows])[which]
    return sums + more, counts + many, row[None], distance[None]


def _move(
    sums: jax.Array,
    counts: jax.Array,
    far: jax.Array,
    distances: jax.Array,
    centroids: jax.Array,
    count: jax.Array,
    *,
    directions: bool,
) -> jax.Array:
    """The means of all devices' rows; where there are none, a row that is far from its centroid, or what it was."""
    total, many = jax.lax.psum(sums[0], AXIS), jax.lax.psum(counts[0], AXIS)
    distance, which = jax.lax.top_k(jax.lax.all_gather(distances[0], AXIS, tiled=True), FARTHEST)
    row = jax.lax.all_gather(far[0], AXIS, tiled=True)[which]
    empty = (many == 0) & (jnp.arange(len(many)) < count)
    rank = jnp.minimum(jnp.cumsum(empty) - 1, FARTHEST - 1)
    instead = empty & (jnp.cumsum(empty) <= FARTHEST) & (distance[rank] > -jnp.inf)
    made = jnp.where(empty[:, None], centroids, total / jnp.maximum(many, 1)[:, None].astype(jnp.float32))
    made = jnp.where(instead[:, None], row[rank], made)
    if directions:
        made /= jnp.maximum(jnp.linalg.norm(made, axis=1, keepdims=True), 1e-30)
    return made


def _assign(rows: jax.Array, centroids: jax.Array, count: jax.Array, *, directions: bool) -> jax.Array:
    number = jnp.argmax(_nearness(rows, centroids, count, directions), axis=1).astype(jnp.int32)
    return jax.lax.all_gather(number, AXIS, tiled=True)

"""K-means on a mesh is Lloyd's, as it is written down, on any number of devices."""

import ml_dtypes
import numpy as np
import pytest

from abi_jax.wdbx.search.ivf import ITERATIONS, sampled
from abi_jax.wdbx.search.mesh_kmeans import assign, cluster
from abi_jax.wdbx.search.mesh_programs import programs_on
from tests.wdbx.search.test_mesh import mesh_of

ROWS, DIM, LISTS = 3000, 12, 40


def clustered(kind: type, copies: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = 20 * rng.normal(size=(15, DIM))
    rows = centers[rng.integers(0, 15, ROWS)] + 6 * rng.normal(size=(ROWS, DIM))
    if copies:  # of two thirds there are only three: lists that begin with copies of one row are empty
        rows[: 2 * ROWS // 3] = rows[np.arange(2 * ROWS // 3) % 3]
    return np.clip(np.rint(rows), -128, 127).astype(kind)


def naive(metric: str, vectors: np.ndarray, count: int) -> np.ndarray:
    """Means of the nearest rows of a sample, over and over; what is empty gets the farthest row."""
    sample, first = sampled(len(vectors), count, 0)
    x = vectors[sample].astype(np.float64)
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids = x[first]
    for _ in range(ITERATIONS):
        distances = np.square(x[:, None] - centroids).sum(-1)
        number = distances.argmin(1)
        farthest = iter(np.argsort(-distances.min(1), kind="stable"))
        for each in range(count):
            mine = x[number == each]
            centroids[each] = mine.mean(0) if len(mine) else x[next(farthest)]
        if metric == "cosine":
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_as_naive(devices: int) -> None:
    programs = programs_on(tuple(mesh_of(devices).devices.flat), "xla")
    some = [("l2", np.float32, 1.0), ("cosine", ml_dtypes.bfloat16, 1.0)]
    more = [
        ("ip", np.int8, 1.0),
        ("l2", np.float32, 2.0**-90),  # whose squares float32 does not hold
        ("l2", np.float32, 2.0**90),
    ]
    for metric, kind, scale in some + more * (devices == 2):
        plain = clustered(kind, copies=False)
        vectors = plain if scale == 1 else plain * np.float32(scale)
        made = cluster(programs, metric, vectors, LISTS)
        assert made.shape == (LISTS, DIM) and made.dtype == np.float32
        expected = naive(metric, plain, LISTS)
        np.testing.assert_allclose(made / np.float32(scale), expected, rtol=1e-4, atol=1e-4)
        found = assign(programs, metric, vectors, made)
        x = plain.astype(np.float64) / (
            np.linalg.norm(plain.astype(float), axis=1)[:, None] if metric == "cosine" else 1
        )
        distances = np.square(x[:, None] - made / np.float32(scale)).sum(-1)
        assert found.shape == (ROWS,) and found.dtype == np.int32
        np.testing.assert_allclose(distances[np.arange(ROWS), found], distances.min(1), rtol=1e-3, atol=1e-5)
        programs_made = len(programs)
        assert len(cluster(programs, metric, vectors[:-70], LISTS - 1)) == LISTS - 1
        assert len(programs) == programs_made  # other sizes compile nothing


@pytest.mark.parametrize("devices", [1, 8])
def test_lists_that_are_empty(devices: int) -> None:
    """They get the farthest rows, as long as there are any that are no copies of a centroid."""
    programs = programs_on(tuple(mesh_of(devices).devices.flat), "xla")
    vectors = clustered(np.float32, copies=True)
    made = cluster(programs, "l2", vectors, LISTS)
    sizes = np.bincount(assign(programs, "l2", vectors, made), minlength=LISTS)
    assert np.count_nonzero(sizes) > 0.9 * LISTS
    np.testing.assert_allclose(made, naive("l2", vectors, LISTS), rtol=1e-4, atol=1e-4)

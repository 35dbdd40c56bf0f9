"""Two processes, one mesh, one store: each holds its own pages, both find the same, and what one process finds."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.sharding.local import LocalConfig, launch
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from tests.wdbx.search.test_mesh import mesh_of

PROGRAM = """
import json
import sys

import jax
import numpy as np

from abi_jax import wdbx
from abi_jax.sharding import MeshConfig as Devices
from abi_jax.sharding import initialize, make_mesh
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig

cluster = initialize()
path, version, bytes_per_device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
mesh = MeshSearch(make_mesh(Devices(data=-1)), MeshSearchConfig(rows_per_page=128, bytes_per_device=bytes_per_device))
queries = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
with wdbx.open(path, mode="r", mesh=mesh) as db:
    c = db.collection("c")
    found = [
        [[(hit.id, hit.score) for hit in hits] for hits in c.view(at).search(queries, 6, where)]
        for at, where in [(version, None), (3, None), (version, {"even": True}), (version, None)]
    ]
    queries[1] = 1  # many rows tie with it
    found.append([[(hit.id, hit.score) for hit in hits] for hits in c.view(version).search(queries, 6)])
    pages = [shard.data.shape[0] for slab in next(iter(mesh._pools.values())).slabs
             for shard in slab.arrays[0].addressable_shards]
    try:
        c.view(version).search(queries + cluster.process_id, 6)
        refused = ""
    except wdbx.WdbxError as e:
        refused = str(e)
    found.append([[(hit.id, hit.score) for hit in hits] for hits in c.view(version).search(queries[:1], 6)])
    listed = db.collection("listed").view(version).with_recall(0.9).telling()
    found.append([[(hit.id, hit.score) for hit in hits] for hits in listed.search(queries, 6)])
    way = listed.said()[0]["way"]
with wdbx.open(path, mode="r", mesh=mesh, codes="pq") as db:
    coded = db.collection("coded").view(version).with_recall(0.9).telling()
    found.append([[(hit.id, hit.score) for hit in hits] for hits in coded.search(queries, 6)])
    way += coded.said()[0]["way"]
made = None
if bytes_per_device is None:
    made = mesh.make_lists("own", mesh, "l2", np.random.default_rng(2).normal(size=(1000, 16)).astype(np.float32))
    made = [made.centroids.tolist(), made.order.tolist(), made.ranks[10].tolist()]
with open(f"{path}-{cluster.process_id}.json", "w") as file:  # Gloo writes to the standard output as well
    json.dump([found, sum(pages), refused, way, made], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("little_memory", [False, True])
def test_two_processes_find_the_same(tmp_path: Path, little_memory: bool) -> None:
    rng = np.random.default_rng(0)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 16, "cosine", schema={"even": bool}, ids="int")
        vectors = rng.normal(size=(3000, 16))
        vectors[::6] = 1
        for start in (0, 1500):
            ids = np.arange(start, start + 1500)
            c.upsert(ids, vectors[ids], {"even": (ids % 2 == 0).tolist()})
            if not start:
                db.seal()
        c.delete(np.arange(0, 3000, 7))
        listed = db.create_collection("listed", 16, "l2", ids="int")
        centers = 3 * rng.normal(size=(80, 16))
        listed.upsert(np.arange(8192), centers[rng.integers(0, 80, 8192)] + 0.5 * rng.normal(size=(8192, 16)))
        assert listed.index() == 1
        alone = listed.on(mesh_of(4), MeshSearchConfig(rows_per_page=128)).view()
        wanted = 1 if little_memory else 0.9  # of rows that stream, all are searched
        queries = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
        with_one = queries.copy()
        with_one[1] = 1
        by_lists = alone.with_recall(wanted).search(with_one, 6)
    with wdbx.open(tmp_path / "store", codes="pq") as db:
        c = db.collection("c")
        coded = db.create_collection("coded", 16, "l2", ids="int")
        coded.upsert(np.arange(8192), centers[rng.integers(0, 80, 8192)] + 0.5 * rng.normal(size=(8192, 16)))
        assert coded.index() == 1
        version = db.version
        expected = [
            [[[hit.id, hit.score] for hit in hits] for hits in c.view(at).search(queries, 6, where)]
            for at, where in [(version, None), (3, None), (version, {"even": True}), (version, None)]
        ]
        expected.append([[[hit.id, hit.score] for hit in hits] for hits in c.view(version).search(with_one, 6)])
        expected.append(expected[-1][:1])
        expected.append([[[hit.id, hit.score] for hit in hits] for hits in by_lists])
        by_codes = coded.on(mesh_of(4), MeshSearchConfig(rows_per_page=128)).view().with_recall(0.9)
        expected.append([[[hit.id, hit.score] for hit in hits] for hits in by_codes.search(with_one, 6)])
    vectors = np.random.default_rng(2).normal(size=(1000, 16)).astype(np.float32)
    made = None if little_memory else MeshSearch(mesh_of(4)).make_lists("own", alone, "l2", vectors)
    budget = 4 * 128 * (16 * 4 + 9) if little_memory else 0
    out, err = io.StringIO(), io.StringIO()
    arguments = (sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "store"), str(version), str(budget))
    status = launch(LocalConfig(arguments, 2, devices=2, prefix=False), out, err)
    assert status == 0, err.getvalue()
    for process in range(2):
        found, pages, refused, way, lists = json.loads((tmp_path / f"store-{process}.json").read_text())
        assert found == expected
        assert way == ("meshpq" if little_memory else "ivfpq")
        assert "the processes of a mesh ask different things" in refused
        if made is not None:
            np.testing.assert_allclose(lists[0], made.centroids, rtol=1e-5, atol=1e-5)
            assert lists[1:] == [made.order.tolist(), made.ranks[10].tolist()]
        # 24 pages over 4 devices, of which each process has 2: half of them, and of some slots that are free
        assert pages == 4 if little_memory else 12 <= pages <= 14

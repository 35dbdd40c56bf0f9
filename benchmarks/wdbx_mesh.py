"""Exact search on the devices of a mesh, beside faiss-cpu (on a CPU) or what the device itself can do (on a GPU).

    python -m benchmarks.wdbx_mesh [--rows 100000] [--dim 384] [--repeats 9] [--operations 10000] [--simulate 8]

Prints one JSON object. On a CPU: one device, float32, batches of 1, 8, 64 and 512; medians in seconds, wall and CPU, of
ours (candidates on the device, exact scores, ties) and of `faiss.IndexFlatIP` with `distance_compute_blas_threshold`
20, and ratios theirs / ours. The two take turns, each in its own process, since idle threads of one spin on the cores
of the other; `--cores 1` binds both to one core, where a machine is busy. With `--simulate`: inverted lists, and a
filter that leaves 1 %, beside exact search of all rows, on so many simulated devices; these say how much less work it
is, not how quick devices are. On a GPU: bfloat16; the device's part as a
share of a copy's bandwidth and of a product's rate, both measured in the same run, and beside torch (matmul and topk),
where it is. `mixed`: programs that were compiled in so many mixed operations, after an eighth of them.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

from abi_jax.sharding.simulate import simulated_devices

BATCHES = (1, 8, 64, 512)
TOP_K = 10


def make_data(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Clustered vectors `[rows, dim]` of length 1, and 512 queries near them; float32, the same every time."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(1000, dim)).astype(np.float32)
    vectors = centers[rng.integers(0, 1000, rows)] + rng.normal(size=(rows, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(0, rows, 512)] + 0.02 * rng.normal(size=(512, dim)).astype(np.float32)
    return vectors, queries


def make_ours(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns queries -> rows `[B, TOP_K]`, searched on one device."""
    import jax
    from jax.sharding import Mesh

    from abi_jax.wdbx.search.mesh import MeshSearch
    from abi_jax.wdbx.search.mesh_part import MeshPart

    mesh = MeshSearch(Mesh(np.array(jax.devices()[:1]), ("data",)))
    part = MeshPart(mesh, vectors, np.ones(len(vectors), bool))

    def search(queries: np.ndarray) -> np.ndarray:
        return mesh("all", [part], "ip", queries, TOP_K).rows[:, :TOP_K]

    return search


def make_theirs(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns queries -> rows `[B, TOP_K]`, by faiss."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda queries: index.search(queries, TOP_K)[1]


def serve(engine: str, rows: int, dim: int, cores: int, pipe: Connection) -> None:
    """Answers each batch size with seconds, wall and CPU, and the rows that were found."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)
    vectors, queries = make_data(rows, dim)
    search = {"ours": make_ours, "theirs": make_theirs}[engine](vectors)
    pipe.send("ready")
    while batch := pipe.recv():
        wall, cpu = perf_counter(), process_time()
        found = search(queries[:batch])
        pipe.send((perf_counter() - wall, process_time() - cpu, found))


def beside_faiss(rows: int, dim: int, repeats: int, cores: int) -> dict[str, Any]:
    """Both engines in turns."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for engine in ("ours", "theirs"):
        pipes[engine], far = context.Pipe()
        workers.append(context.Process(target=serve, args=(engine, rows, dim, cores, far), daemon=True))
        workers[-1].start()
        pipes[engine].recv()

    def ask(engine: str, batch: int) -> tuple[float, float, np.ndarray]:
        sleep(0.05)  # the other engine's threads stop spinning
        pipes[engine].send(batch)
        wall, cpu, found = pipes[engine].recv()
        return wall, cpu, found

    made: dict[str, Any] = {}
    for batch in BATCHES:
        first = {engine: ask(engine, batch)[2] for engine in pipes}
        times = [{engine: ask(engine, batch)[:2] for engine in pipes} for _ in range(repeats)]
        walls, cpus = ({engine: median(each[engine][i] for each in times) for engine in pipes} for i in (0, 1))
        made[f"batch_{batch}"] = {
            "ours_s": round(walls["ours"], 5),
            "faiss_s": round(walls["theirs"], 5),
            "ratio": round(walls["theirs"] / walls["ours"], 2),
            "ours_cpu_s": round(cpus["ours"], 5),
            "faiss_cpu_s": round(cpus["theirs"], 5),
            "ratio_cpu": round(cpus["theirs"] / cpus["ours"], 2),
            "same_rows": round(float((first["ours"] == first["theirs"]).mean()), 5),
        }
    for pipe in pipes.values():
        pipe.send(0)
    return made


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call whose result is on a device."""
    import jax

    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = perf_counter()
        jax.block_until_ready(call())
        times.append(perf_counter() - start)
    return median(times)


def on_gpu(rows: int, dim: int, repeats: int, kernel: str) -> dict[str, Any]:
    """The device's part of a search beside a copy, a product, and torch."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh

    from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig, keep_for
    from abi_jax.wdbx.search.mesh_pages import encode_queries
    from abi_jax.wdbx.search.mesh_part import MeshPart

    vectors, queries = make_data(rows, dim)
    mesh = MeshSearch(Mesh(np.array(jax.devices()[:1]), ("data",)), MeshSearchConfig("bfloat16", kernel=kernel))
    parts = [MeshPart(mesh, vectors, np.ones(rows, bool))]
    mesh("all", parts, "ip", queries[:1], TOP_K)
    pool, programs = next(iter(mesh._pools.values())), mesh.programs
    slabs = list(pool.scanned(parts))
    held = sum(sum(array.nbytes for array in each.slab.arrays) for each in slabs)
    some = jnp.ones(1 << 30, jnp.bfloat16)
    copy = 2 * some.nbytes / seconds_of(lambda: jnp.copy(some), repeats)
    square = jnp.ones((8192, 8192), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    rate = 2 * 8192**3 / seconds_of(lambda: product(square, square), repeats)
    made: dict[str, Any] = {"copy_bytes_s": copy, "product_flops_s": rate, "bytes": held, "kernel": kernel}
    keep = keep_for("bfloat16", parts, TOP_K)
    for batch in (1, 4, 16, 64, 128, 256, 512):
        encoded = encode_queries(pool.shape, queries[:batch], batch)
        sent = [programs.copy(encoded.parts), programs.copy(encoded.scales)]

        def scan(batch: int = batch, sent: list[Any] = sent) -> Any:
            best, base = programs.begin(batch, keep), 0
            for each in slabs:
                best = programs.scan(each.slab.arrays, each.seen.mask, base, sent, best)
                base += each.slab.slots * pool.shape.rows
            return programs.merge(best)

        device = seconds_of(scan, repeats)
        whole = seconds_of(lambda batch=batch: mesh("all", parts, "ip", queries[:batch], TOP_K), repeats)  # type: ignore[misc]
        made[f"batch_{batch}"] = {
            "device_s": device,
            "whole_s": whole,
            "share_of_copy": held / device / copy,
            "share_of_product": 2 * rows * dim * batch / device / rate,
        } | beside_torch(vectors, queries[:batch], device, repeats)
    return made


def beside_torch(vectors: np.ndarray, queries: np.ndarray, ours: float, repeats: int) -> dict[str, float]:
    """Torch's matmul and topk in bfloat16; nothing where torch, or its GPU, is not there."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    rows, wanted = (torch.from_numpy(each).to("cuda", torch.bfloat16) for each in (vectors, queries))
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = perf_counter()
        torch.topk(wanted @ rows.T, TOP_K)
        torch.cuda.synchronize()
        times.append(perf_counter() - start)
    theirs = median(times[1:])
    return {"torch_s": theirs, "torch_ratio": theirs / ours}


def lists_beside_exact(rows: int, dim: int, repeats: int, devices: int) -> dict[str, Any]:
    """Seconds of exact search, of lists and of what a filter leaves, and what share of the nearest lists found."""
    import jax
    from jax.sharding import Mesh

    from abi_jax.wdbx.search.mesh import MeshSearch
    from abi_jax.wdbx.search.mesh_part import MeshPart
    from abi_jax.wdbx.search.told import Told

    vectors, queries = make_data(rows, dim)
    mesh = MeshSearch(Mesh(np.array(jax.devices()[:devices]), ("data",)))
    start, cpu = perf_counter(), process_time()
    lists = mesh.make_lists("all", mesh, "ip", vectors)
    made: dict[str, Any] = {"devices": devices, "lists": len(lists.centroids)}
    made |= {"lists_s": round(perf_counter() - start, 3), "lists_cpu_s": round(process_time() - cpu, 3)}
    every, few = np.ones(rows, bool), np.random.default_rng(1).random(rows) < 0.01

    def timed(batch: int, allowed: np.ndarray, recall: float) -> tuple[float, float, list[set[int]], dict[str, Any]]:
        part = MeshPart(mesh, vectors, allowed, lambda: lists)
        mesh("all", [part], "ip", queries[:batch], TOP_K, None, recall)
        times = []
        for _ in range(repeats):
            told, wall, cpu = Told(), perf_counter(), process_time()
            found = mesh("all", [part], "ip", queries[:batch], TOP_K, told, recall).each()
            times.append((perf_counter() - wall, process_time() - cpu))
        wall, cpu = (median(each) for each in zip(*times, strict=True))
        return wall, cpu, [{*each.rows[:TOP_K].tolist()} for each in found], told.entries(["it"])[0]

    for batch in (1, 8, 64):
        *exact, rows_of, _ = timed(batch, every, 1.0)
        made[f"batch_{batch}"] = {"exact_s": round(exact[0], 5), "exact_cpu_s": round(exact[1], 5)}
        for name, allowed, recall in (("recall_0.9", every, 0.9), ("recall_0.99", every, 0.99), ("filter", few, 1.0)):
            wall, cpu, found, how = timed(batch, allowed, recall)
            ratios = {"ratio": round(exact[0] / wall, 2), "ratio_cpu": round(exact[1] / cpu, 2)}
            made[f"batch_{batch}"][name] = ratios | {"way": how["way"], "rows": how["rows"]}
            if recall < 1:
                same = [len(a & b) / TOP_K for a, b in zip(rows_of, found, strict=True)]
                made[f"batch_{batch}"][name]["found"] = round(float(np.mean(same)), 4)
    return made


def recompilations(operations: int) -> dict[str, int]:
    """Programs compiled by mixed operations on a store, after an eighth of them."""
    import jax
    from jax.sharding import Mesh

    from abi_jax import wdbx

    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rng = np.random.default_rng(0)
    counted = 0
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with TemporaryDirectory() as folder, wdbx.open(Path(folder) / "store", retention=1.0, mesh=mesh) as db:
        c = db.create_collection("c", 32, "l2", schema={"n": int}, ids="int")
        c.upsert(np.arange(30_000), rng.normal(size=(30_000, 32)), {"n": [0] * 30_000})
        for i in range(operations):
            kind = rng.random()
            some = np.unique(rng.integers(0, 30_000, rng.integers(1, 40)))
            if i == operations // 8:
                counted = len(seen)
            if kind < 0.2:
                c.upsert(some, rng.normal(size=(len(some), 32)), {"n": (some % 7).tolist()})
            elif kind < 0.3:
                c.delete(some)
            elif kind < 0.302:
                db.seal()
            else:
                where = {"n": {"$gte": int(rng.integers(0, 7))}} if kind < 0.5 else None
                c.query(rng.normal(size=(rng.integers(1, 20), 32)), int(rng.integers(1, 16)), where)
    return {"operations": operations, "warm_up": counted, "recompilations": len(seen) - counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--kernel", default="xla")
    parser.add_argument("--simulate", type=int, default=0)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    made: dict[str, Any] = {"benchmark": "wdbx_mesh", "rows": asked.rows, "dim": asked.dim, "repeats": asked.repeats}
    made["cores"] = asked.cores
    if asked.simulate:
        os.environ.update(simulated_devices(asked.simulate, os.environ))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.cores])
        made |= lists_beside_exact(asked.rows, asked.dim, asked.repeats, asked.simulate)
    elif asked.repeats:
        made |= (
            beside_faiss(asked.rows, asked.dim, asked.repeats, asked.cores)
            if not has_gpu()
            else on_gpu(asked.rows, asked.dim, asked.repeats, asked.kernel)
        )
    if asked.operations:
        made["mixed"] = recompilations(asked.operations)
    print(json.dumps(made, indent=1))


def has_gpu() -> bool:
    """Whether JAX computes on a GPU here."""
    import jax

    return jax.default_backend() == "gpu"


if __name__ == "__main__":
    main()

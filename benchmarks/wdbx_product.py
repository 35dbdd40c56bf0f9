"""Product codes beside our int8 codes and faiss-cpu's product quantisers, all with exact scores of what they find.

    python -m benchmarks.wdbx_product [--data clinc clustered even] [--rows 200000] [--recall 0.9 0.99] [--rounds 7]

Prints one JSON object. Data, turns and times are those of `wdbx_search`; `ratio` is theirs / ours. An engine is built
once a data set and then tuned for each recall: ours is told the recall alone, faiss gets the least `k_factor` of a
ladder (and `nprobe`, the pair that takes the least time) that reaches it on queries kept apart. "reached" is of the
others. Half a byte for four dimensions or one for eight: the product codes have the same bytes, but for what pads
dimensions. `bytes` is memory a row, of codes and lists; faiss's exact rows are in memory besides, ours are mapped.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.wdbx_search import LADDER, QUERIES, TOP_K, faiss_flat, in_turns, make_data, recall_of, take_turn

HALF = QUERIES // 2  # to measure with; the others are to tune with
BATCHES = (1, 64)
FACTORS = tuple(each for each in LADDER if each <= 512)
FEWEST_LISTS = 4  # of a ladder


class Ours:
    """A collection of a store on disk. codes: by what it is searched."""

    def __init__(self, codes: str, metric: str, vectors: np.ndarray) -> None:
        from abi_jax import wdbx

        self.folder = TemporaryDirectory()
        db = wdbx.open(Path(self.folder.name) / "store", codes=codes)
        self.collection = db.create_collection("c", vectors.shape[1], metric, ids="int")
        self.collection.import_({"id": np.arange(len(vectors)), "vector": vectors})
        self.collection.index()
        self.rows, self.codes, self.recall = len(vectors), codes, 0.9

    def tune(self, recall: float, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        """Is told the recall."""
        self.recall = recall
        self(queries[:8])
        view = self.collection.view().with_recall(recall)
        plans = [each for each in view.explain() if each["of"]]
        held = 0
        for segment, plan in zip(view.segments, plans, strict=True):
            index = segment.products() if self.codes == "pq" else segment.index()
            assert index is not None
            held += index.codes.nbytes + index.lists.order.nbytes + index.lists.centroids.nbytes
            if self.codes == "pq" and "pq" not in plan["way"]:
                held += segment.codes.nbytes
        kept = ("way", "nearest", "rows", "of", "candidates")
        return {"bytes": held / self.rows, "plan": [{name: x[name] for name in kept if name in x} for x in plans]}

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        return self.collection.view().with_recall(self.recall).search_arrays(queries, TOP_K)[0]


class Faiss:
    """A quantiser of faiss, whose best rows are scored exactly. kind: "pq", "fastscan" or "ivf_fastscan"."""

    def __init__(self, kind: str, metric: str, vectors: np.ndarray) -> None:
        import faiss

        rows, dim = vectors.shape
        measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.metric, self.ivf = metric, None
        self.coarse: Any
        bytes_ = dim // 8
        if kind == "pq":
            self.coarse = faiss.IndexPQ(dim, dim // 8, 8, measure)
        elif kind == "fastscan":
            self.coarse = faiss.IndexPQFastScan(dim, dim // 4, 4, measure)
        else:
            lists = int(2 * np.sqrt(rows))
            self.flat = faiss.IndexFlat(dim, measure)
            self.coarse = self.ivf = faiss.IndexIVFPQFastScan(self.flat, dim, lists, dim // 4, 4, measure)
            bytes_ += 8 + lists * dim * 4 / rows  # ids, which are 64 bits, and centroids
        known = self._unit(vectors)
        self.coarse.train(known[np.random.default_rng(0).permutation(rows)[: 64 * 900]])
        self.index = faiss.IndexRefineFlat(self.coarse)
        self.index.add(known)
        self.bytes = bytes_

    def tune(self, recall: float, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        """Takes the least factor that reaches the recall, with the number of lists that takes the least time."""
        best: tuple[float, int, int] | None = None
        for lists in self._lists():
            if self.ivf is not None:
                self.ivf.nprobe = lists
            self.index.k_factor = FACTORS[-1]
            if recall_of(self(queries), truth) < recall:
                continue
            for factor in FACTORS:
                self.index.k_factor = factor
                if recall_of(self(queries), truth) >= recall:
                    break
            start = perf_counter()
            self(queries[:64])
            taken = perf_counter() - start
            if best is None or taken < best[0]:
                best = taken, lists, factor
        _, lists, factor = best or (0.0, LADDER[-1], FACTORS[-1])
        if self.ivf is not None:
            self.ivf.nprobe = lists
        self.index.k_factor = factor
        return {"bytes": self.bytes, "k_factor": factor} | ({} if self.ivf is None else {"nprobe": lists})

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.index.search(self._unit(queries), TOP_K)[1]
        return found

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.metric == "l2" else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _lists(self) -> Iterator[int]:
        yield from (LADDER[:1] if self.ivf is None else (each for each in LADDER if FEWEST_LISTS <= each <= 256))


ENGINES: dict[str, Callable[[str, np.ndarray], Ours | Faiss]] = {
    "ours": lambda *data: Ours("pq", *data),
    "ours_int8": lambda *data: Ours("int8", *data),
    "faiss_pq": lambda *data: Faiss("pq", *data),
    "faiss_fastscan": lambda *data: Faiss("fastscan", *data),
    "faiss_ivf_fastscan": lambda *data: Faiss("ivf_fastscan", *data),
}


def work(engine: str, name: str, rows: int, pipe: Connection) -> None:
    """A process: builds an engine, is tuned for a recall, and answers batches, for a turn each."""
    metric, vectors, queries = make_data(name, rows)
    truth = faiss_flat(metric, vectors, 1.0, None, queries)(queries)
    start, cpu = perf_counter(), process_time()
    ask = ENGINES[engine](metric, vectors)
    pipe.send({"build_wall": perf_counter() - start, "build_cpu": process_time() - cpu})
    while (order := pipe.recv()) is not None:
        if isinstance(order, float):
            about = ask.tune(order, queries[HALF:], truth[HALF:])
            pipe.send({"reached": recall_of(ask(queries[:HALF]), truth[:HALF])} | about)
            continue
        pipe.send(take_turn(ask, queries, order))


def compare(name: str, rows: int, recalls: list[float], rounds: int) -> dict[str, Any]:
    """All engines side by side, for each recall."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    made: dict[str, Any] = {"build": {}}
    for engine in ENGINES:
        pipes[engine], theirs = context.Pipe()
        context.Process(target=work, args=(engine, name, rows, theirs), daemon=True).start()
        made["build"][engine] = pipes[engine].recv()
    for recall in recalls:
        result: dict[str, Any] = {}
        for engine, pipe in pipes.items():
            pipe.send(recall)
            result[engine] = pipe.recv()
        for batch in BATCHES:
            for engine, each in in_turns(pipes, batch, rounds).items():
                result[engine][f"batch_{batch}"] = each
        made[f"recall_{recall}"] = result
    for pipe in pipes.values():
        pipe.send(None)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["clinc", "clustered", "even"])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--recall", nargs="+", type=float, default=[0.9, 0.99])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    made: dict[str, Any] = {"benchmark": "wdbx_product", "top_k": TOP_K, "rows": options.rows}
    for name in options.data:
        made[name] = compare(name, options.rows, options.recall, options.rounds)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()

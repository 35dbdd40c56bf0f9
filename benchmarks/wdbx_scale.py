"""One collection of 10 thousand to 10 million rows of 96 x int8: import, open, first and later queries, memory.

    python -m benchmarks.wdbx_scale [--rows 10000 100000 1000000 10000000] [--figure docs/wdbx-scale.png]

Prints one JSON object. Every size is imported by one process and opened by another, which begins with nothing in memory
but what the kernel keeps of the files; `resident` is the most that the second has resident, in bytes, mapped files
included. Rows have clusters; queries are rows of the collection, changed a little. `exact` finds all of the best ten;
`recall_0.95` asks for that many on average, through inverted lists, whose making (`lists_s`) is not in the query's
time; `recall` is what that found of what `exact` finds. Seconds are medians of single queries, and of batches of 16.
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

DIM, TOP_K, BATCH, QUERIES = 96, 10, 16, 64
CHUNK = 100_000


def chunks(rows: int) -> Iterator[np.ndarray]:
    """Clustered rows, int8 `[CHUNK, DIM]` at a time; the same every time."""
    centers = np.random.default_rng(1).normal(size=(max(50, rows // 1000), DIM)).astype(np.float32) * 30
    for number, start in enumerate(range(0, rows, CHUNK)):
        rng = np.random.default_rng((2, number))
        count = min(CHUNK, rows - start)
        made = centers[rng.integers(0, len(centers), count)] + 12 * rng.standard_normal((count, DIM), np.float32)
        yield np.clip(np.rint(made), -127, 127).astype(np.int8)


def import_rows(folder: str, rows: int, pipe: Connection) -> None:
    import pyarrow as pa

    from abi_jax import wdbx

    def batches() -> Iterator[pa.RecordBatch]:
        for number, vectors in enumerate(chunks(rows)):
            ids = pa.array(np.arange(number * CHUNK, number * CHUNK + len(vectors)))
            flat = pa.array(vectors.reshape(-1))
            yield pa.record_batch([ids, pa.FixedSizeListArray.from_arrays(flat, DIM)], names=["id", "vector"])

    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.int8(), DIM))])
    with wdbx.open(folder) as db:
        c = db.create_collection("c", DIM, "l2", "int8", ids="int")
        start = perf_counter()
        c.import_(pa.RecordBatchReader.from_batches(schema, batches()))
        pipe.send(perf_counter() - start)


def ask(folder: str, rows: int, pipe: Connection) -> None:
    from abi_jax import wdbx

    some = next(chunks(rows))[:QUERIES].astype(np.float32)
    queries = some + 3 * np.random.default_rng(3).standard_normal(some.shape, np.float32)
    start = perf_counter()
    db = wdbx.open(folder, mode="r")
    made: dict[str, Any] = {"open_s": perf_counter() - start}
    view = db.collection("c").view()
    start = perf_counter()
    view.search_arrays(queries[:1], TOP_K)
    made["first_query_s"] = perf_counter() - start
    exact, made["exact"] = _timed(lambda some: view.search_arrays(some, TOP_K)[0], queries)
    made["resident_exact"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = perf_counter()
    made["segments"], made["with_lists"] = len(view.segments), view.index()
    made["lists_s"] = perf_counter() - start
    less = view.with_recall(0.95)
    found, made["recall_0.95"] = _timed(lambda some: less.search_arrays(some, TOP_K)[0], queries)
    same = [len(set(a) & set(b)) / TOP_K for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    made["recall"] = float(np.mean(same))
    made["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(made)


def _timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    search(queries[:BATCH])
    one, many = [], []
    for i in range(16):
        start = perf_counter()
        search(queries[i : i + 1])
        one.append(perf_counter() - start)
    for i in range(0, QUERIES, BATCH):
        start = perf_counter()
        search(queries[i : i + BATCH])
        many.append(perf_counter() - start)
    return search(queries), {"one_s": median(one), f"batch_{BATCH}_s": median(many)}


def in_process(work: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    made = mine.recv()
    process.join()
    return made


def draw(sizes: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    rows = [int(each) for each in sizes]
    lines = {
        "import": lambda each: each["import_s"],
        "open": lambda each: each["open_s"],
        "first query": lambda each: each["first_query_s"],
        "query, exact": lambda each: each["exact"]["one_s"],
        "query, recall 0.95": lambda each: each["recall_0.95"]["one_s"],
    }
    for name, value in lines.items():
        seconds.loglog(rows, [value(each) for each in sizes.values()], marker="o", label=name)
    seconds.set(title=f"Seconds, {DIM} x int8", xlabel="rows")
    seconds.legend()
    stored = [count * DIM / 2**20 for count in rows]
    memory.loglog(rows, stored, "k:", label="vectors")
    memory.loglog(rows, [each["resident_exact"] / 2**20 for each in sizes.values()], marker="o", label="exact")
    memory.loglog(rows, [each["resident"] / 2**20 for each in sizes.values()], marker="o", label="with lists")
    memory.set(title="MiB resident, mapped files included", xlabel="rows")
    memory.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    sizes: dict[str, dict[str, Any]] = {}
    for rows in options.rows:
        with TemporaryDirectory() as folder:
            seconds = in_process(import_rows, folder + "/store", rows)
            sizes[str(rows)] = {"import_s": seconds} | in_process(ask, folder + "/store", rows)
    if options.figure:
        draw(sizes, options.figure)
    print(json.dumps({"benchmark": "wdbx_scale", "dim": DIM, "dtype": "int8", "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()

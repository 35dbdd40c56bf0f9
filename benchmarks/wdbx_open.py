"""How long a store takes to open and answer its first query, encrypted beside plain.

Both hold the same clustered vectors; they are opened in turns, in one process that has compiled all it needs, so that
what differs is what opening them takes. Prints one JSON object: medians in seconds, and their ratio.

  python benchmarks/wdbx_open.py --rows 1000000 --dim 128 --rounds 9
"""

import argparse
import gc
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np

from abi_jax import wdbx

ROWS_AT_ONCE = 1 << 16
CLUSTERS = 1024
KEY = bytes(range(32))


def batches(rows: int, dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Clustered vectors, float32 `[n, dim]`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, dim)).astype(np.float32)
    for start in range(0, rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows - start)
        noise = rng.standard_normal((count, dim), np.float32)
        yield centres[rng.integers(0, CLUSTERS, count)] + np.float32(0.3) * noise


def make(path: Path, rows: int, dim: int, key: bytes | None) -> float:
    """Writes a store; seconds."""
    start = perf_counter()
    with wdbx.open(path, key=key) as db:
        c = db.create_collection("c", dim, metric="l2", ids="int")
        vectors = np.concatenate(list(batches(rows, dim)))
        c.import_({"id": np.arange(rows), "vector": vectors})
    return perf_counter() - start


def first_answer(path: Path, key: bytes | None, query: np.ndarray) -> tuple[dict[str, float], list[Any]]:
    """Seconds until a store is open, until it has answered, of all cores, and until it answers again; the ids."""
    gc.collect()
    start, busy = perf_counter(), process_time()
    with wdbx.open(path, mode="r", key=key) as db:
        opened = perf_counter()
        c = db.collection("c")
        hits = c.view().search(query[None], top_k=10)[0]
        answered, cores = perf_counter(), process_time()
        c.view().search(query[None], top_k=10)
        again = perf_counter()
    seconds = {"open": opened - start, "first": answered - start, "cpu": cores - busy, "again": again - answered}
    return seconds, [hit.id for hit in hits]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    query = next(batches(1, options.dim, seed=1))[0]
    keys = {"plain": None, "encrypted": KEY}
    with TemporaryDirectory() as folder:
        for name, key in keys.items():
            make(Path(folder) / f"warm-{name}", 20_000, options.dim, key)
        written = {name: make(Path(folder) / name, options.rows, options.dim, key) for name, key in keys.items()}
        for name, key in keys.items():
            for _ in range(2):
                first_answer(Path(folder) / f"warm-{name}", key, query)
                first_answer(Path(folder) / name, key, query)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in keys}
        for turn in range(options.rounds):
            answers = []
            for name in keys if turn % 2 else reversed(keys):
                seconds, ids = first_answer(Path(folder) / name, keys[name], query)
                found[name].append(seconds)
                answers.append(ids)
            assert answers[0] == answers[1]
    medians = {
        name: {what: round(statistics.median(each[what] for each in rounds), 4) for what in rounds[0]}
        for name, rounds in found.items()
    }
    pairs = zip(found["encrypted"], found["plain"], strict=True)
    ratios = sorted(encrypted["first"] / plain["first"] for encrypted, plain in pairs)
    report = {
        "rows": options.rows,
        "dim": options.dim,
        "cores": len(os.sched_getaffinity(0)),
        "rounds": options.rounds,
        "seconds_to_write": {name: round(seconds, 2) for name, seconds in written.items()},
        "medians": medians,
        "ratio_of_medians": round(medians["encrypted"]["first"] / medians["plain"]["first"], 3),
        "ratio_of_pairs": {
            "median": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
        },
        "ratio_of_cpu": round(medians["encrypted"]["cpu"] / medians["plain"]["cpu"], 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

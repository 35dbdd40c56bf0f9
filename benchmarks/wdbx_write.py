"""How fast rows are written, beside LanceDB, Chroma and Qdrant (local), and what they take on disk.

    python -m benchmarks.wdbx_write --folder runs/wdbx_write --peer-python .venv-peers/bin/python

Rounds are interleaved, on the same disk, and imports take turns at being first: a virtual machine gives memory that was
just freed sooner than other; before a measure `--touch` GiB are taken and given back, so that memory the machine never
had is nobody's cost. Every write of WDBX is durable (`fdatasync`) and hash-chained when it returns; those of
the peers are as they come. `upsert`: 1,000 x 768 float32 with ids and two fields, into a table that is there.
`import`: rows into an empty table, from NumPy arrays; Chroma and Qdrant, which index or keep rows one by one, are given
fewer of them (`slow_rows`) and run in the interpreter `--peer-python`, which has them installed. `disk`: 1,000 upserts
of one row each, then nothing for some seconds: bytes of all files to bytes of vectors, ids and fields. `stall`: seconds
of single upserts, quiet and while a seal of `--seal-rows` rows goes on. `load`: of the machine before a measure. Prints
one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any
from uuid import uuid4

import numpy as np

Timed = tuple[float, float]  # seconds, CPU seconds
SHAPES = ((100_000, 768), (500_000, 128))


def vectors(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random rows `[rows, dim]`, float32."""
    return np.random.default_rng(seed).standard_normal((rows, dim), np.float32)


def timed(call: Callable[[], object]) -> Timed:
    """Seconds and CPU seconds that a call takes."""
    start, busy = perf_counter(), process_time()
    call()
    return perf_counter() - start, process_time() - busy


class Wdbx:
    """A collection of a store of its own."""

    def __init__(self, folder: Path, dim: int) -> None:
        from abi_jax import wdbx

        self.path = folder / f"wdbx-{uuid4().hex}"
        self.db = wdbx.open(self.path)
        self.rows = self.db.create_collection("rows", dim, schema={"lang": str, "year": int})

    def upsert(self, ids: list[str], x: np.ndarray) -> None:
        self.rows.upsert(ids, x, {"lang": ["en"] * len(ids), "year": list(range(len(ids)))})

    def load(self, ids: list[str], x: np.ndarray) -> None:
        self.rows.import_({"id": ids, "vector": x, "lang": ["en"] * len(ids), "year": np.arange(len(ids))})

    def close(self) -> None:
        self.db.close()
        shutil.rmtree(self.path)


class Lance:
    """A table of a LanceDB database of its own."""

    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        self.path = folder / f"lance-{uuid4().hex}"
        vector = pa.list_(pa.float32(), dim)
        schema = pa.schema([("id", pa.string()), ("vector", vector), ("lang", pa.string()), ("year", pa.int64())])
        self.schema = schema
        self.table = lancedb.connect(self.path).create_table("rows", schema=schema)

    def upsert(self, ids: list[str], x: np.ndarray) -> None:
        import pyarrow as pa

        listed = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        columns = [pa.array(ids), listed, pa.array(["en"] * len(ids)), pa.array(np.arange(len(ids)))]
        self.table.add(pa.Table.from_arrays(columns, schema=self.schema))

    load = upsert

    def close(self) -> None:
        shutil.rmtree(self.path)


class Chroma:
    """A collection of a Chroma database of its own, on disk."""

    def __init__(self, folder: Path, dim: int) -> None:
        import chromadb  # type: ignore[import-not-found, unused-ignore]

        self.path = folder / f"chroma-{uuid4().hex}"
        settings = chromadb.Settings(anonymized_telemetry=False)
        self.rows = chromadb.PersistentClient(str(self.path), settings).create_collection("rows")

    def load(self, ids: list[str], x: np.ndarray) -> None:
        for at in range(0, len(ids), 5000):
            part = ids[at : at + 5000]
            about: Any = [{"lang": "en", "year": at + i} for i in range(len(part))]
            self.rows.add(part, x[at : at + 5000], about)

    def close(self) -> None:
        shutil.rmtree(self.path)


class Qdrant:
    """A collection of a local Qdrant of its own, on disk."""

    def __init__(self, folder: Path, dim: int) -> None:
        from qdrant_client import QdrantClient, models  # type: ignore[import-not-found, unused-ignore]

        self.path = folder / f"qdrant-{uuid4().hex}"
        self.client = QdrantClient(path=str(self.path))
        self.client.create_collection("rows", models.VectorParams(size=dim, distance=models.Distance.COSINE))

    def load(self, ids: list[str], x: np.ndarray) -> None:
        about = [{"lang": "en", "year": i} for i in range(len(ids))]
        self.client.upload_collection("rows", x, about, list(range(len(ids))))

    def close(self) -> None:
        self.client.close()
        shutil.rmtree(self.path)


PEERS: dict[str, Any] = {"wdbx": Wdbx, "lancedb": Lance, "chroma": Chroma, "qdrant": Qdrant}


def load(engine: str, folder: Path, rows: int, dim: int) -> Timed:
    """Imports rows into an empty table."""
    x, ids = vectors(rows, dim), [f"document {i}" for i in range(rows)]
    peer = PEERS[engine](folder, dim)
    try:
        return timed(partial(peer.load, ids, x))
    finally:
        peer.close()


def elsewhere(python: str, engine: str, folder: Path, rows: int, dim: int) -> Timed:
    """`load` in another interpreter."""
    command = [python, __file__, "--load", engine, "--rows", str(rows), "--dim", str(dim), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, busy = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(busy)


def upserts(folder: Path, rounds: int, rows: int = 1000, dim: int = 768) -> dict[str, Any]:
    """Batches into tables that have some already."""
    peers: dict[str, Any] = {"wdbx": Wdbx(folder, dim), "lancedb": Lance(folder, dim)}
    found: dict[str, list[Timed]] = {name: [] for name in peers}
    for turn in range(rounds + 2):
        x, ids = vectors(rows, dim, turn), [f"document {turn} {i}" for i in range(rows)]
        for name, peer in peers.items():
            taken = timed(partial(peer.upsert, ids, x))
            found[name] += [taken] if turn >= 2 else []
    for peer in peers.values():
        peer.close()
    said = {name: {"ms": _ms(each, 0), "cpu_ms": _ms(each, 1)} for name, each in found.items()}
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(found["wdbx"], found["lancedb"], strict=True)]
    return said | {"time_ratio_lancedb": round(median(ratios), 2), "pass": median(ratios) <= 2}


def _ms(times: list[Timed], which: int) -> float:
    return round(1e3 * median(each[which] for each in times), 2)


def imports(folder: Path, rounds: int, rows: int, dim: int, python: str, slow_rows: int) -> dict[str, Any]:
    """Rows a second of all engines; `ratio_best`: ours to those of the best peer."""
    found: dict[str, list[Timed]] = {name: [] for name in PEERS if python or name in ("wdbx", "lancedb")}
    for turn in range(rounds + 1):
        for name in ("wdbx", "lancedb") if turn % 2 else ("lancedb", "wdbx"):
            taken = load(name, folder, rows, dim)
            found[name] += [taken] if turn else []
        if python and turn == 1:
            for name in ("chroma", "qdrant"):
                found[name].append(elsewhere(python, name, folder, slow_rows, dim))
    counts = {name: slow_rows if name in ("chroma", "qdrant") else rows for name in found}
    said: dict[str, Any] = {
        name: {
            "rows": counts[name],
            "rows_per_s": round(counts[name] / median(each[0] for each in times)),
            "rows_per_cpu_s": round(counts[name] / median(each[1] for each in times)),
        }
        for name, times in found.items()
    }
    best = max(each["rows_per_s"] for name, each in said.items() if name != "wdbx")
    ratio = said["wdbx"]["rows_per_s"] / best
    thrift = said["wdbx"]["rows_per_cpu_s"] / max(v["rows_per_cpu_s"] for n, v in said.items() if n != "wdbx")
    return said | {"ratio_best": round(ratio, 2), "ratio_best_cpu": round(thrift, 2), "pass": ratio >= 0.7}


def disk(folder: Path, seconds: float, rows: int = 1000, dim: int = 768) -> dict[str, Any]:
    """Bytes on disk to live bytes after single upserts and a rest."""
    peer = Wdbx(folder, dim)
    x = vectors(rows, dim)
    for i in range(rows):
        peer.upsert([f"document {i}"], x[i : i + 1])
    sleep(seconds)
    size = sum(file.stat().st_size for file in peer.path.rglob("*") if file.is_file())
    live = x.nbytes + sum(len(f"document {i}") for i in range(rows)) + rows * (2 + 8)
    peer.close()
    return {"bytes": size, "live": live, "ratio": round(size / live, 3), "pass": size <= 2 * live}


def stall(folder: Path, seal_rows: int, dim: int = 768) -> dict[str, Any]:
    """Single upserts while nothing else goes on, and while a seal does."""
    peer = Wdbx(folder, dim)
    x = vectors(seal_rows, dim)

    def some(going: Callable[[int], bool]) -> list[float]:
        found: list[float] = []
        while going(len(found)):
            found.append(timed(partial(peer.upsert, ["one"], x[:1]))[0])
        return sorted(found)

    quiet = some(lambda count: count < 400)
    for at in range(0, seal_rows, 1000):
        peer.upsert([f"document {i}" for i in range(at, at + 1000)], x[at : at + 1000])
    sealing = threading.Thread(target=peer.db.seal)
    sealing.start()
    busy = some(lambda count: sealing.is_alive())
    sealing.join()
    peer.close()
    said: dict[str, Any] = {"seal_rows": seal_rows, "upserts_meanwhile": len(busy)}
    for name, times in (("quiet", quiet), ("sealing", busy)):
        said[f"{name}_ms_p50_p99"] = [round(1e3 * float(np.quantile(times, at)), 2) for at in (0.5, 0.99)]
    return said | {"greatest_ms": round(1e3 * max(busy), 2)}


def touch(gib: float) -> None:
    """Takes memory once and gives it back."""
    np.ones(int(gib * 2**27))


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/wdbx_write"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--peer-python", default="", help="an interpreter that has chromadb and qdrant-client")
    parser.add_argument("--slow-rows", type=int, default=5000)
    parser.add_argument("--seal-rows", type=int, default=20_000)
    parser.add_argument("--rest", type=float, default=8.0, help="seconds before bytes are counted")
    parser.add_argument("--only", nargs="+", help="measures whose names begin so: upsert, disk, stall, import")
    parser.add_argument("--touch", type=float, default=6.0, help="GiB of memory that are taken before a measure")
    parser.add_argument("--load", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.load:
        print(json.dumps(load(args.load, args.folder, args.rows, args.dim)))
        sys.stdout.flush()
        os._exit(0)  # some peers hold on to threads
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "upsert_1000x768": lambda: upserts(args.folder, 3 * args.rounds),
        "disk_1000_upserts": lambda: disk(args.folder, args.rest),
        "stall": lambda: stall(args.folder, args.seal_rows),
    }
    for rows, dim in SHAPES:
        shape = args.folder, args.rounds, rows, dim, args.peer_python, args.slow_rows
        measures[f"import_{rows}x{dim}"] = partial(imports, *shape)
    said: dict[str, Any] = {"benchmark": "wdbx_write", "cores": os.cpu_count()}
    for name, measure in measures.items():
        if not args.only or name.startswith(tuple(args.only)):
            touch(args.touch)
            load_before = round(os.getloadavg()[0], 2)
            said[name] = measure() | {"load": load_before}
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()

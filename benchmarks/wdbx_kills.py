"""A WDBX store whose writer is killed (SIGKILL) again and again under load, and what that costs: nothing acknowledged.

    python -m benchmarks.wdbx_kills --kills 1000

Several threads of one process upsert and delete rows, many a version, while the store seals and compacts; every
acknowledgement is told over a pipe. The process is killed at a random moment: while it opens the store, writes, seals,
compacts, or takes garbage away. Then the store is opened, by a reader and by a writer: each thread's rows must be those
of its acknowledged operations, with the whole of the one it was waiting for, or without any of it, and `verify` must
find nothing but what a crash leaves, and nothing at all once a writer has closed the store. The next process goes on
from there. Prints one JSON object.

Processes are forked from one that has imported everything and started no thread, so that a kill does not pay for that.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx import background
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.verify import verify

THREADS, KEYS, DIM = 3, 60, 8
RETENTION = 0.5  # seconds
SEALED = 4  # after so many kills the log is sealed in peace, so that it does not grow for ever
BEFORE = 5  # of so many kills one is looked at by `verify` before the store is opened again, too
STORE_LIFE = 100  # kills, then another store is begun
LONGEST = 0.6  # seconds that a process writes
OPENING = 0.25  # of all kills are at a moment of its first quarter of that, the others after its first write
PATIENCE = 60.0  # seconds that it may need for that
OPENED = 255  # in the place of a thread: the store is open
TOLD = struct.Struct("<BIQ")  # thread, operation, version
FORK = multiprocessing.get_context("forkserver")
Rows = dict[int, int]  # key -> the operation that wrote it


def operation(seed: int, thread: int, number: int) -> tuple[str, list[int]]:
    """What a thread does as its operation `number`: "upsert" or "delete", and the keys."""
    chosen = random.Random(f"{seed} {thread} {number}")
    keys = chosen.sample(range(KEYS), chosen.choice([1, 2, 5, 20]))
    return ("delete" if chosen.random() < 0.25 else "upsert"), keys


def after(rows: Rows, seed: int, thread: int, number: int) -> Rows:
    """Rows after an operation."""
    what, keys = operation(seed, thread, number)
    changed = dict.fromkeys(keys, number)
    return rows | changed if what == "upsert" else {key: n for key, n in rows.items() if key not in changed}


def live(root: Path, seed: int, begin: list[int], told: Connection) -> None:
    """A process that writes until it is killed. begin: the first operation of every thread."""
    background.SEAL_BYTES, background.IDLE_SECONDS = 24 << 10, 0.02
    db = Database(LocalStorage(root), retention=RETENTION)
    if "c" not in db.collections():
        db.create_collection("c", DIM, "l2", schema={"number": int})
    os.write(told.fileno(), TOLD.pack(OPENED, 0, db.version))
    threads = [threading.Thread(target=_write, args=(db, seed, t, n, told.fileno())) for t, n in enumerate(begin)]
    for thread in threads:
        thread.start()
    chosen = random.Random(f"{seed} {begin}")
    while True:
        time.sleep(chosen.uniform(0.03, 0.3))
        db.compact()


def _write(db: Database, seed: int, thread: int, number: int, told: int) -> None:
    collection = db.collection("c")
    while True:
        what, keys = operation(seed, thread, number)
        ids = [f"{thread}-{key}" for key in keys]
        if what == "upsert":
            vectors = np.repeat(np.array(keys, np.float32)[:, None], DIM, 1)
            version = collection.upsert(ids, vectors, {"number": [number] * len(ids)})
        else:
            collection.delete(ids)
            version = 0
        os.write(told, TOLD.pack(thread, number, version))
        number += 1


@dataclass
class Store:
    """A store, what its threads have done, and what was found when it was opened again."""

    root: Path
    seed: int
    rows: list[Rows] = field(default_factory=lambda: [{} for _ in range(THREADS)])
    next: list[int] = field(default_factory=lambda: [0] * THREADS)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def interrupt(self, chosen: random.Random) -> None:
        """Lets a process write, kills it, and notes what it said before."""
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=live, args=(self.root, self.seed, self.next, there))
        process.start()
        there.close()
        last: list[tuple[int, Rows]] = [(0, {})] * THREADS
        moment, data = chosen.uniform(0, LONGEST), b""
        until = time.monotonic() + (moment / 4 if chosen.random() < OPENING else PATIENCE)
        while (left := until - time.monotonic()) > 0:
            if here.poll(left):
                before, data = data, data + os.read(here.fileno(), 1 << 16)
                if len(before) <= TOLD.size < len(data):  # a first write was acknowledged
                    until = min(until, time.monotonic() + moment)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with contextlib.suppress(OSError, EOFError):
            while more := os.read(here.fileno(), 1 << 16):
                data += more
        for thread, number, version in TOLD.iter_unpack(data[: len(data) // TOLD.size * TOLD.size]):
            if thread != OPENED:
                self.counts["acknowledged"] += 1
                self.rows[thread] = after(self.rows[thread], self.seed, thread, number)
                self.next[thread] = number + 1
                last[thread] = (version, self.rows[thread])
        self.counts["kills"] += 1
        self.counts["killed while writing" if data else "killed while opening"] += 1
        self._check(last)

    def _check(self, last: list[tuple[int, Rows]]) -> None:
        if not (self.root / "wdbx.json").exists():
            return  # killed before there was a store
        try:
            left = verify(LocalStorage(self.root)) if self.counts["kills"] % BEFORE == 0 else []
            self.wrong += [
                str(each) for each in left if "left by a crash" not in each.wrong and "log/" not in each.file
            ]
            self.counts["left behind by a crash"] += bool(left)
            self.counts["killed while files were written"] += bool(LocalStorage(self.root).partial())
            with Database(LocalStorage(self.root), mode="r") as reader:
                seen = self._held(reader)
            with Database(LocalStorage(self.root), background=False, retention=RETENTION) as db:
                self._compare(db, seen, last)
                if self.counts["kills"] % SEALED == 0:
                    db.seal()
            self.wrong += [str(each) for each in verify(LocalStorage(self.root))]
        except InputError as error:
            self.counts["failed to open"] += 1
            self.wrong.append(str(error))

    def _held(self, db: Database, at: int | None = None, threads: Sequence[int] = range(THREADS)) -> list[Rows]:
        if "c" not in db.collections():
            return [{} for _ in threads]
        found: list[Rows] = []
        for thread in threads:
            rows = db.collection("c").get([f"{thread}-{key}" for key in range(KEYS)], at=at)
            found.append({key: row.metadata["number"] for key, row in enumerate(rows) if row is not None})
            if any(row is not None and row.vector.tolist() != [key] * DIM for key, row in enumerate(rows)):
                self.wrong.append(f"thread {thread} has rows of others")
        return found

    def _compare(self, db: Database, seen: list[Rows], last: list[tuple[int, Rows]]) -> None:
        held = self._held(db)
        if held != seen:
            self.wrong.append("a reader and the next writer see different rows")
        for thread, rows in enumerate(held):
            acknowledged, number = self.rows[thread], self.next[thread]
            begun = after(acknowledged, self.seed, thread, number)
            if rows == begun:
                self.counts["not acknowledged, but there"] += rows != acknowledged
                self.rows[thread], self.next[thread] = begun, number + 1
            elif rows != acknowledged:
                newer = {key for key, n in acknowledged.items() if rows.get(key, -1) < n}
                self.counts["acknowledged and lost" if newer else "torn"] += 1
                self.wrong.append(f"thread {thread} has {rows} after operation {number - 1}")
        version, rows, thread = max(((*each, thread) for thread, each in enumerate(last)), key=lambda each: each[0])
        if version:
            with contextlib.suppress(InputError):  # it is no longer kept
                if self._held(db, version, [thread]) != [rows]:
                    self.wrong.append(f"thread {thread} had other rows at version {version}")
                self.counts["looked back at a version"] += 1


def measure(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kills writers `kills` times in all; what was found."""
    FORK.set_forkserver_preload(["abi_jax.wdbx.database"])
    chosen, began = random.Random(seed), time.monotonic()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    while counts["kills"] < kills:
        store = Store(folder / f"store-{counts['kills']}", seed + counts["kills"])
        for _ in range(min(STORE_LIFE, kills - counts["kills"])):
            store.interrupt(chosen)
            if store.counts["kills"] % 25 == 0:
                print(f"{counts['kills'] + store.counts['kills']} of {kills} kills", file=sys.stderr, flush=True)
        store.counts["sealed and compacted"] += sum(1 for head in _log(store.root) if head == "seal")
        counts += store.counts
        wrong += store.wrong
    zero = {name: counts[name] for name in ("torn", "acknowledged and lost", "failed to open")}
    return dict(sorted(counts.items())) | zero | {"wrong": wrong, "seconds": round(time.monotonic() - began)}


def _log(root: Path) -> list[str]:
    with Database(LocalStorage(root), mode="r") as db:
        return [each["kind"] for each in db.log()]


def main() -> None:
    """Parses the command line, prints one JSON object; exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wdbx-kills-") as folder:
        result = measure(Path(folder), args.kills, args.seed)
    print(json.dumps({"benchmark": "wdbx_kills", "threads": THREADS} | result, indent=2))
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()

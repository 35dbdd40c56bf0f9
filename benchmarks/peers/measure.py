"""Checks that the engines agree, and measures them.

    python -m benchmarks.peers.measure check 34m --folder runs/peers
    python -m benchmarks.peers.measure llama_cpp 34m --folder runs/peers
    python -m benchmarks.peers.measure transformers 110m --folder runs/peers
    python -m benchmarks.peers.measure compile 110m --folder runs/peers

One engine per process: torch and llama.cpp bring an OpenMP runtime each, and the idle threads
of one spin on the cores that the other is measured on. Prints one JSON object a line, times in
milliseconds as median, least and greatest of the repeats, `others` in cores. Dimensions: B sequences, T tokens.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.llama_cpp_peer import LlamaCppPeer
from benchmarks.peers.shapes import SHAPES, write_checkpoint
from benchmarks.peers.transformers_peer import TransformersPeer

PROMPT, NEW_TOKENS, PREFILL = 64, 32, 512
TRAIN_B, TRAIN_T = 4, 256
QUIET = 0.15  # cores


def tokens(shape: str, sequences: int, length: int) -> np.ndarray:
    """Returns random ids [B, T], the same on every call."""
    return np.random.default_rng(0).integers(0, SHAPES[shape]["vocab_size"], (sequences, length))


def prepare(shape: str, folder: Path) -> tuple[Path, Path]:
    """Returns the checkpoint folder and the GGUF file of `shape`, written unless they are there."""
    checkpoint, file = folder / shape, folder / f"{shape}.gguf"
    if not file.exists():
        write_gguf(write_checkpoint(shape, checkpoint), file)
    return checkpoint, file


def check(shape: str, folder: Path) -> None:
    """Raises AssertionError unless both engines decode the same ids, at one and two sequences."""
    checkpoint, file = prepare(shape, folder)
    ours, theirs = TransformersPeer(checkpoint), LlamaCppPeer(file)
    for sequences in (1, 2):
        prompt = tokens(shape, sequences, PROMPT)
        _, a = ours.decode(prompt, NEW_TOKENS)
        _, b = theirs.decode(prompt, NEW_TOKENS)
        np.testing.assert_array_equal(a, b, err_msg=f"{shape}: greedy ids at B={sequences}")
        emit(shape, "check", f"B={sequences}", same_ids=a.size, distinct_ids=len(np.unique(a)))
    theirs.close()


def report(shape: str, engine: str, what: str, call: Callable[[], float], repeats: int, warmup: int = 1) -> None:
    """Prints median, least and greatest of `repeats` calls that return seconds.

    The machine may be shared: calls go on until `repeats` of them ran while other processes
    used less than `QUIET` cores, or three times as many ran; the quietest count. `others` is
    the most that other processes used during those.
    """
    for _ in range(warmup):
        call()
    rows: list[tuple[float, float]] = []
    while sum(others < QUIET for others, _ in rows) < repeats and len(rows) < 3 * repeats:
        start, busy = perf_counter(), busy_elsewhere()
        milliseconds = 1e3 * call()
        rows.append(((busy_elsewhere() - busy) / (perf_counter() - start), milliseconds))
    rows = sorted(rows)[:repeats]
    times = [milliseconds for _, milliseconds in rows]
    values = {"ms": median(times), "least": min(times), "greatest": max(times), "others": rows[-1][0]}
    emit(shape, engine, what, **{name: round(value, 2) for name, value in values.items()})


def busy_elsewhere() -> float:
    """Returns the CPU seconds that everything but this process has used since boot (Linux)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - process_time()


def emit(shape: str, engine: str, what: str, **values: Any) -> None:
    """Prints one line."""
    print(json.dumps({"shape": shape, "engine": engine, "what": what, **values}), flush=True)


def measure(shape: str, folder: Path, engine: str, threads: int, repeats: int) -> None:
    """Measures decoding at B = 1 and 8, a 512-token prompt, and a training step."""
    checkpoint, file = prepare(shape, folder)
    peer: LlamaCppPeer | TransformersPeer
    if engine == "llama_cpp":
        peer = LlamaCppPeer(file, threads=threads)
    else:
        peer = TransformersPeer(checkpoint, compile=engine == "compile", threads=threads)
    for sequences in (1, 8):
        prompt = tokens(shape, sequences, PROMPT)
        report(shape, engine, f"decode B={sequences}", partial(seconds, peer, prompt), repeats)
        if isinstance(peer, TransformersPeer) and engine == "transformers":
            report(
                shape, engine, f"decode B={sequences} static cache", partial(seconds, peer, prompt, "static"), repeats
            )
    prompt = tokens(shape, 1, PREFILL)
    report(shape, engine, f"prefill B=1 T={PREFILL}", lambda: peer.prefill(prompt), repeats)
    if isinstance(peer, TransformersPeer):
        batch = tokens(shape, TRAIN_B, TRAIN_T)
        # the second step is the first with optimizer state in memory
        report(shape, engine, f"train B={TRAIN_B} T={TRAIN_T}", lambda: peer.train_step(batch), repeats, warmup=2)


def seconds(peer: LlamaCppPeer | TransformersPeer, prompt: np.ndarray, *cache: str) -> float:
    """Returns the seconds of one decode step after `prompt` [B, T]."""
    decode: Any = peer.decode
    return float(decode(prompt, NEW_TOKENS, *cache)[0])


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Checks and measures the peer engines.")
    parser.add_argument("engine", choices=["check", "llama_cpp", "transformers", "compile"])
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are, or are to be written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.engine == "check":
        check(args.shape, args.folder)
    else:
        measure(args.shape, args.folder, args.engine, args.threads, args.repeats)


if __name__ == "__main__":
    main()

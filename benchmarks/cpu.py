"""Decoding, prompt reading and training on this CPU, side by side with transformers and llama.cpp.

    python -m benchmarks.cpu --shapes 34m 110m --folder runs/peers

Same weights, f32, two threads. Each engine lives in a process of its own (their OpenMP runtimes would spin on
each other's cores) and one engine works at a time: round by round, every engine does every task once. Prints
one JSON object: medians in milliseconds, `ours_over` the peer's median divided by ours (above 1 we are
faster), and `quiet`, the share of rounds in which other processes used less than 0.15 cores; where there are
at least three quiet rounds the medians are theirs alone. In training ours keeps its working memory, as `abi train`
does; "ours, pages returned" does not, and "transformers, pages kept" is the peer with the same. Needs torch,
transformers, llama-cpp-python, gguf.
"""

import argparse
import json
import multiprocessing
import platform
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from abi_jax.sharding.host_memory import keep_memory
from benchmarks.peers.measure import NEW_TOKENS, PREFILL, PROMPT, QUIET, TRAIN_B, TRAIN_T, prepare, tokens

WARM_UP = 4  # compilation, then working memory to its full size
PERSONA_COUNTS = {"ours+3": 3, "ours+16": 16}
KEEPING = ["ours", "ours+3", "transformers, pages kept", "transformers compiled, pages kept"]
TRAINERS = [*KEEPING, "ours, pages returned", "transformers", "transformers compiled"]
Task = tuple[str, int]


def build(engine: str, shape: str, folder: Path) -> Any:
    """Returns one engine with the weights of `shape`."""
    checkpoint, gguf = prepare(shape, folder)
    if engine == "llama.cpp":
        from benchmarks.peers.llama_cpp_peer import LlamaCppPeer

        return LlamaCppPeer(gguf)
    if engine.startswith("transformers"):
        from benchmarks.peers.transformers_peer import TransformersPeer

        return TransformersPeer(checkpoint, compile="compiled" in engine)
    from benchmarks.peers.abi_jax_peer import AbiJaxPeer

    return AbiJaxPeer(checkpoint, PERSONA_COUNTS.get(engine, 0))


def perform(peer: Any, shape: str, task: Task) -> float:
    """Returns the seconds of one task: ("decode", B), ("prefill", T), ("train", B) or ("dispatch", B)."""
    kind, size = task
    if kind == "decode":
        return float(peer.decode(tokens(shape, size, PROMPT), NEW_TOKENS)[0])
    if kind == "prefill":
        return float(peer.prefill(tokens(shape, 1, size)))
    if kind == "dispatch":
        return float(peer.dispatch(tokens(shape, size, PROMPT)))
    return float(peer.train_step(tokens(shape, size, TRAIN_T)))


def serve(engine: str, shape: str, folder: Path, pipe: Connection, keep: bool) -> None:
    """The engine's process: performs tasks until told to stop."""
    if keep:
        keep_memory()
    peer = build(engine, shape, folder)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        pipe.send(perform(peer, shape, task))


def busy() -> float:
    """Seconds that all cores together have been busy since boot (Linux)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / 100


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def compare(
    shape: str, tasks: dict[Task, list[str]], folder: Path, rounds: int, keeping: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `rounds` interleaved rounds of every task on every engine that takes part in it.

    The engines in `keeping` keep their working memory.
    """
    prepare(shape, folder)
    context = multiprocessing.get_context("spawn")
    engines = sorted({engine for takers in tasks.values() for engine in takers})
    pipes: dict[str, Connection] = {}
    workers = {}
    for engine in engines:
        mine, theirs = context.Pipe()
        args = (engine, shape, folder, theirs, engine in keeping)
        workers[engine] = context.Process(target=serve, args=args, daemon=True)
        workers[engine].start()
        pipes[engine] = mine
        mine.recv()
    measured: dict[tuple[Task, str], list[tuple[float, float]]] = {}
    for turn in range(WARM_UP + rounds):
        for task, takers in tasks.items():
            for engine in takers:
                own, all_cores, start = cpu_of(workers[engine].pid or 0), busy(), perf_counter()
                pipes[engine].send(task)
                seconds = pipes[engine].recv()
                elapsed = perf_counter() - start
                others = (busy() - all_cores - cpu_of(workers[engine].pid or 0) + own) / elapsed
                if turn >= WARM_UP:
                    measured.setdefault((task, engine), []).append((others, seconds))
    for pipe in pipes.values():
        pipe.send(None)
    return {f"{kind} {size}": summary(measured, (kind, size), takers) for (kind, size), takers in tasks.items()}


def summary(measured: dict[tuple[Task, str], list[tuple[float, float]]], task: Task, takers: list[str]) -> Any:
    """Medians of one task and the ratios to ours."""
    rows = {engine: measured[task, engine] for engine in takers}
    quiet = {engine: [s for others, s in row if others < QUIET] for engine, row in rows.items()}
    enough = all(len(q) >= 3 for q in quiet.values())
    ms = {e: 1e3 * median(quiet[e] if enough else [s for _, s in row]) for e, row in rows.items()}
    ours = ms["ours"]
    return {
        "ms": {e: round(v, 2) for e, v in ms.items()},
        "ours_over": {e: round(v / ours, 2) for e, v in ms.items() if not e.startswith("ours")},
        "persona_overhead": {e: round(v / ours - 1, 3) for e, v in ms.items() if e.startswith("ours+")},
        "quiet": {e: round(len(quiet[e]) / len(row), 2) for e, row in rows.items()},
    }


def combine(launches: list[Any]) -> Any:
    """The median of every figure over launches: where a process's memory lies moves its times by several percent."""
    first = launches[0]
    if isinstance(first, dict):
        return {name: combine([launch[name] for launch in launches]) for name in first}
    return round(median(launches), 3)


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["34m", "110m"])
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints are, or are to be written")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--launches", type=int, default=1, help="times that every engine is started anew")
    parser.add_argument("--only", nargs="*", default=[], help="task names, e.g. decode train")
    parser.add_argument("--engines", nargs="*", help="leave out all but these")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    everyone = ["ours", "transformers", "llama.cpp"]
    tasks: dict[Task, list[str]] = {
        ("decode", 1): [*everyone, "ours+3"],
        ("decode", 8): [*everyone, "ours+3", "ours+16"],
        ("prefill", PREFILL): everyone,
        ("dispatch", 8): ["ours", "ours+3"],
        ("train", TRAIN_B): TRAINERS,
    }
    if args.only:
        tasks = {task: takers for task, takers in tasks.items() if task[0] in args.only}
    if args.engines:
        tasks = {task: [e for e in takers if e in args.engines] for task, takers in tasks.items()}
    training = {task: takers for task, takers in tasks.items() if task[0] == "train"}
    others = {task: takers for task, takers in tasks.items() if task[0] != "train"}
    result = {
        shape: combine(
            [
                compare(shape, others, args.folder, args.rounds)
                | compare(shape, training, args.folder, args.rounds, KEEPING)
                for _ in range(args.launches)
            ]
        )
        for shape in args.shapes
    }
    machine = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__}
    print(json.dumps({"benchmark": "cpu", "machine": machine, "results": result}))


if __name__ == "__main__":
    main()

"""Training end to end, data and checkpoints included, side by side with transformers' Trainer on this CPU.

    python -m benchmarks.trainer --data ../shared/data/gsm8k.jsonl --folder runs/trainer

The same shape (34M parameters, f32, AdamW, clipping), rows of the same length, checkpoints with optimizer state at the
same steps, two threads. Ours reads chat records, tokenises, packs, labels and feeds them while it trains, and hashes
and links what it saves. The Trainer is handed rows that are tokenised already. Every engine is a process; all but one
are stopped (SIGSTOP), in turns of some seconds, so that what else the machine does falls on all alike; time counts
while a process runs. The first steps, in which programs are compiled, are not counted. Ours keeps its working memory,
as `abi train` does (`abi_jax.sharding.host_memory`); "pages kept" is the peer with the same. Prints one JSON object:
tokens/s by engine, the spread over windows of 5 steps, `ratio` of ours to the better of eager and compiled as they
come, `ratio_pages_kept` to the better of those with pages kept, the share of ours that waited for input in a run
without turns (a stop may fall into a wait), and the seconds that ours took to its second step, programs cached and not.
Needs torch, transformers, accelerate.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np

from abi_jax.sharding.host_memory import keep_memory

ROWS, LENGTH = 8, 256
WARM_UP, STEPS, SAVE_EVERY = 5, 60, 20
KEPT = ", pages kept"
PEERS = ("transformers", "transformers compiled")
KEEPING_PEERS = tuple(peer + KEPT for peer in PEERS)
ENGINES = ("ours", *PEERS, *KEEPING_PEERS)


def main() -> None:
    """Runs the engines in turns and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="chat records, JSONL")
    parser.add_argument("--folder", type=Path, default=Path("runs/trainer"), help="where runs are written")
    parser.add_argument("--turn", type=float, default=10.0, help="seconds that an engine runs before the next does")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        run = ours if options.engine == "ours" else theirs
        print(json.dumps(run(options.data, options.folder, options.engine)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        found = in_turns(list(ENGINES), options, cache)
        (again,) = in_turns(["ours"], options, cache).values()
    speeds, spread = {}, {}
    for engine, said in found.items():
        ends, active = said["steps"], said["active"]
        windows = [5 * ROWS * LENGTH / overlap(active, a, b) for a, b in pairwise(ends)]
        speeds[engine] = (STEPS - WARM_UP) * ROWS * LENGTH / overlap(active, ends[0], said["end"])
        spread[engine] = [round(x) for x in quantiles(windows, n=4)]
    report = {
        "shape": "34m",
        "rows": ROWS,
        "length": LENGTH,
        "save_every": SAVE_EVERY,
        "tokens_per_second": {engine: round(speed) for engine, speed in speeds.items()},
        "quartiles_of_windows": spread,
        "ratio": round(speeds["ours"] / max(speeds[engine] for engine in PEERS), 3),
        "ratio_pages_kept": round(speeds["ours"] / max(speeds[engine] for engine in KEEPING_PEERS), 3),
        "input_wait": again["input_wait"],
        "cold_start_s": round(overlap(found["ours"]["active"], found["ours"]["began"], found["ours"]["second"]), 1),
        "warm_start_s": round(again["second"] - again["began"], 1),
    }
    print(json.dumps(report))


def in_turns(engines: list[str], options: argparse.Namespace, cache: str) -> dict[str, dict[str, Any]]:
    """Runs engines as processes, one at a time, a turn each until all have ended; what they printed, and `active`: from
    when to when each of them ran.
    """
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    running, active, found = {}, {engine: list[tuple[float, float]]() for engine in engines}, {}
    for engine in engines:
        command = [sys.executable, "-m", "benchmarks.trainer", "--engine", engine, "--data", str(options.data)]
        folder = options.folder / engine.replace(",", "").replace(" ", "-")
        running[engine] = subprocess.Popen(
            [*command, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True, env=env
        )
        if len(engines) > 1:
            os.killpg(running[engine].pid, signal.SIGSTOP)
    try:
        while running:
            for engine, process in list(running.items()):
                start = perf_counter()
                os.killpg(process.pid, signal.SIGCONT)
                while (alone := len(engines) == 1) or perf_counter() < start + options.turn:
                    if process.poll() is not None:
                        break
                    time.sleep(0.2 if alone else 0.02)
                active[engine].append((start, perf_counter()))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGSTOP)
                    continue
                del running[engine]
                assert process.stdout is not None
                if process.returncode:
                    raise SystemExit(f"{engine} exited with {process.returncode}")
                found[engine] = json.loads(process.stdout.read().splitlines()[-1]) | {"active": active[engine]}
                print(f"{engine}: done", file=sys.stderr, flush=True)
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return found


def overlap(active: list[tuple[float, float]], start: float, end: float) -> float:
    """Seconds of [start, end] in which a process ran. Linux has one `perf_counter` for all processes."""
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in active)


def ours(data: Path, folder: Path, engine: str) -> dict[str, Any]:
    """Trains with `abi_jax.train`; every `WARM_UP` steps a report waits until they are done."""
    began = perf_counter()
    keep_memory()
    from abi_jax.data import DataConfig
    from abi_jax.sharding import MeshConfig
    from abi_jax.train import loop
    from abi_jax.train.config import ModelSection, TrainConfig
    from abi_jax.train.feed import feed
    from abi_jax.train.report import read_metrics
    from benchmarks.checkpointing import MODEL

    times = []

    def timed(*args: Any) -> Any:
        times.append(perf_counter())
        return feed(*args)

    shutil.rmtree(folder, ignore_errors=True)
    config = TrainConfig(
        out=folder,
        steps=STEPS,
        checkpoint_every=SAVE_EVERY,
        keep=1,
        log_every=WARM_UP,
        model=ModelSection(config=MODEL),
        data=DataConfig(train=(str(data),), mode="backbone", length=LENGTH, batch_size=ROWS),
        mesh=MeshConfig(data=1),
    )
    with patch.object(loop, "feed", timed):
        last = loop.train(config, progress=False)
    waits = [record["input_wait"] for record in read_metrics(folder / "metrics.jsonl")][1:]
    assert last["step"] == STEPS
    return {
        "began": began,
        "second": times[1],  # everything was read, made and compiled
        "steps": times[WARM_UP::WARM_UP],
        "end": perf_counter(),
        "input_wait": round(max(waits), 5),
    }


def theirs(data: Path, folder: Path, engine: str) -> dict[str, Any]:
    """Trains with `transformers.Trainer`; torch computes as it is told, so a step that has ended is over."""
    if engine in KEEPING_PEERS:
        keep_memory()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.peers.shapes import SHAPES

    torch.set_num_threads(2)
    rows = np.random.default_rng(0).integers(0, SHAPES["34m"]["vocab_size"], (STEPS * ROWS, LENGTH))
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            times.append(perf_counter())

    shutil.rmtree(folder, ignore_errors=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        learning_rate=3e-4,
        max_grad_norm=1.0,
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        logging_steps=WARM_UP,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        torch_compile="compiled" in engine,
    )
    model = LlamaForCausalLM(LlamaConfig(**SHAPES["34m"]))
    items = [{"input_ids": torch.as_tensor(row), "labels": torch.as_tensor(row)} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[Clock()]).train()
    return {"steps": times[WARM_UP - 1 :: WARM_UP], "end": perf_counter()}


if __name__ == "__main__":
    main()

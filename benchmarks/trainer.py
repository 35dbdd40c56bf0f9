"""Training end to end, data and checkpoints included, side by side with transformers' Trainer on this CPU.

    python -m benchmarks.trainer --data ../shared/data/gsm8k.jsonl --folder runs/trainer

The same shape (34M parameters, f32, AdamW, clipping), rows of the same length, checkpoints with optimizer state at the
same steps, two threads. Ours reads chat records, tokenises, packs, labels and feeds them while it trains, and hashes
and links what it saves. The Trainer is handed rows that are tokenised already. Every run is a process of its own, one
at a time, engines in turn; the first steps, in which programs are compiled, are not counted. Prints one JSON object:
tokens/s by engine and round, medians, `ratio` of ours to the better of eager and compiled, and the share of ours that
waited for input. Needs torch, transformers, accelerate.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np

ROWS, LENGTH = 8, 256
WARM_UP, STEPS, SAVE_EVERY = 5, 45, 20
ENGINES = ("ours", "transformers", "transformers compiled")


def main() -> None:
    """Runs every engine in turn and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="chat records, JSONL")
    parser.add_argument("--folder", type=Path, default=Path("runs/trainer"), help="where runs are written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        run = ours if options.engine == "ours" else theirs
        print(json.dumps(run(options.data, options.folder, "compiled" in options.engine)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    for number in range(options.rounds):
        for engine in ENGINES:
            said = subprocess.run(
                [sys.executable, "-m", "benchmarks.trainer", "--engine", engine]
                + ["--data", str(options.data), "--folder", str(options.folder)],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            ).stdout
            found[engine].append(json.loads(said.splitlines()[-1]))
            print(f"round {number + 1}: {engine}: {found[engine][-1]}", file=sys.stderr, flush=True)
    speeds = {engine: median(run["tokens_per_second"] for run in runs) for engine, runs in found.items()}
    best = max(speed for engine, speed in speeds.items() if engine != "ours")
    report = {
        "shape": "34m",
        "rows": ROWS,
        "length": LENGTH,
        "save_every": SAVE_EVERY,
        "tokens_per_second": {engine: round(speed) for engine, speed in speeds.items()},
        "ratio": round(speeds["ours"] / best, 3),
        "input_wait": max(run["input_wait"] for run in found["ours"]),
        "warm_start_s": [run["start_s"] for run in found["ours"]],
        "rounds": {engine: [round(run["tokens_per_second"]) for run in runs] for engine, runs in found.items()},
    }
    print(json.dumps(report))


def ours(data: Path, folder: Path, compiled: bool) -> dict[str, Any]:
    """Trains with `abi_jax.train`; the clock starts when step `WARM_UP` is done, which its report waits for."""
    began = perf_counter()
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()
    from abi_jax.data import DataConfig
    from abi_jax.sharding import MeshConfig
    from abi_jax.train import loop
    from abi_jax.train.config import ModelSection, TrainConfig
    from abi_jax.train.feed import feed
    from benchmarks.checkpointing import MODEL

    times = []

    def timed(*args: Any) -> Any:
        times.append(perf_counter())
        return feed(*args)

    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(
        out=out,
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
    seconds = perf_counter() - times[WARM_UP]
    waits = [json.loads(line)["input_wait"] for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    assert last["step"] == STEPS
    return {
        "tokens_per_second": (STEPS - WARM_UP) * ROWS * LENGTH / seconds,
        "input_wait": round(max(waits), 5),
        "start_s": round(times[1] - began, 1),  # to the second batch: everything was read, made and compiled
    }


def theirs(data: Path, folder: Path, compiled: bool) -> dict[str, Any]:
    """Trains with `transformers.Trainer`; torch computes as it is told, so a step that has ended is over."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.peers.shapes import SHAPES

    torch.set_num_threads(2)
    rows = np.random.default_rng(0).integers(0, SHAPES["34m"]["vocab_size"], (STEPS * ROWS, LENGTH))
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            times.append(perf_counter())

    out = folder / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    arguments = TrainingArguments(
        output_dir=str(out),
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
        torch_compile=compiled,
    )
    model = LlamaForCausalLM(LlamaConfig(**SHAPES["34m"]))
    items = [{"input_ids": torch.as_tensor(row), "labels": torch.as_tensor(row)} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[Clock()]).train()
    return {"tokens_per_second": (STEPS - WARM_UP) * ROWS * LENGTH / (perf_counter() - times[WARM_UP - 1])}


if __name__ == "__main__":
    main()

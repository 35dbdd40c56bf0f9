"""What checkpoints cost a run: how fast tensors are hashed, and how much longer steps take because of a save.

    python -m benchmarks.checkpointing --every 40 --saves 6 --folder runs/checkpointing

Trains the shape `34m` of benchmarks/peers/shapes.py with AdamW, f32, through `train`, with a save every so many steps,
and takes the time of every step from its metrics. Saving goes on behind the first steps after a save. `stall_s` is what
the first `FOLLOWING` of them take beyond as many of the steps right after those, which take as long as steps without a
save do: the machine's speed drifts, and steps further off would lend it to the save. It is the median of all saves,
with the quartiles beside it; `share` is of the time between saves. Digests are of weights and moments of the same
shape, on one core and as a run computes them. Prints one JSON object.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import numpy as np

from abi_jax.data import DataConfig
from abi_jax.lineage_digest import Snapshot
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import abstract, describe
from abi_jax.sharding import MeshConfig
from abi_jax.sharding.host_memory import keep_memory
from abi_jax.train.config import ModelSection, TrainConfig
from abi_jax.train.loop import train

MODEL = ModelConfig(
    vocab_size=16384, d_model=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, d_ff=1376, max_length=2048
)
ROWS, LENGTH = 4, 256
BAR = 0.02
FOLLOWING = 8  # steps in whose time saving is over
DEFAULT_EVERY = TrainConfig().checkpoint_every


def step_seconds(folder: Path, every: int, saves: int) -> np.ndarray:
    """Trains; returns the seconds of every step after the first save, [saves - 1, every]: a row begins after a save."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(
        out=out,
        steps=every * saves,
        checkpoint_every=every,
        log_every=1,
        keep=1,
        model=ModelSection(config=MODEL),
        data=DataConfig(mode="backbone", length=LENGTH, batch_size=ROWS),
        mesh=MeshConfig(data=1),
    )
    train(config, progress=False)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = np.array([ROWS * LENGTH / record["tokens_per_second"] for record in records])
    return times.reshape(saves, every)[1:]


def stall(times: np.ndarray) -> dict[str, Any]:
    """What a save adds to the steps that follow it, from seconds [intervals, steps]."""
    every = times.shape[1]
    following, quiet = times[:, :FOLLOWING], np.median(times[:, FOLLOWING : 3 * FOLLOWING], axis=1)
    added = np.sum(following - quiet[:, None], axis=1)
    low, middle, high = (float(x) for x in np.quantile(added, [0.25, 0.5, 0.75]))
    step = float(np.median(quiet))
    return {
        "steps_between_saves": every,
        "intervals": len(times),
        "quiet_step_ms": round(1e3 * step, 1),
        "first_steps_ms": [round(1e3 * float(t), 1) for t in np.median(following, axis=0)],
        "stall_s": round(middle, 3),
        "stall_s_quartiles": [round(low, 3), round(high, 3)],
        "share": round(middle / (every * step), 4),
        f"share_at_every_{DEFAULT_EVERY}": round(middle / (DEFAULT_EVERY * step), 4),
        "pass": middle / (DEFAULT_EVERY * step) <= BAR,
    }


def digests(rounds: int) -> dict[str, Any]:
    """MB/s of hashing weights and both moments, and of SHA-256 alone on one core."""
    _, weights = describe(partial(Decoder, MODEL))
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract(weights, np.float32))]
    chosen = np.random.default_rng(0)
    tensors = {f"{i}": chosen.random(shape, np.float32) for i, shape in enumerate(3 * shapes)}
    size = sum(x.nbytes for x in tensors.values())
    taken, raw = Snapshot(tensors), bytes(1 << 26)
    cores = os.sched_getaffinity(0)
    seconds: dict[str, list[float]] = {"as_used": [], "one_core": [], "sha256_one_core": []}
    for _ in range(rounds):
        seconds["as_used"].append(timed(lambda: taken.digests([taken.leaves()])))
        os.sched_setaffinity(0, {min(cores)})  # threads that are started from here on have it too
        seconds["one_core"].append(timed(lambda: taken.digests([taken.leaves()])))
        seconds["sha256_one_core"].append(timed(lambda: hashlib.sha256(raw).digest()) * size / len(raw))
        os.sched_setaffinity(0, cores)
    return {"mb": round(size / 1e6), "cores": len(cores)} | {
        f"{name}_mb_per_s": round(size / 1e6 / median(taken_s)) for name, taken_s in seconds.items()
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=40, help=f"steps between saves, at least {3 * FOLLOWING}")
    parser.add_argument("--saves", type=int, default=6, help="at least 3; the first interval is not counted")
    parser.add_argument("--rounds", type=int, default=5, help="of hashing")
    parser.add_argument("--folder", type=Path, default=Path("runs/checkpointing"), help="for the run's checkpoints")
    args = parser.parse_args()
    if args.every < 3 * FOLLOWING:
        parser.error(f"--every {args.every}; expected at least {3 * FOLLOWING}")
    keep_memory()  # as `abi train` does
    hashed = digests(args.rounds)
    saving = stall(step_seconds(args.folder, args.every, args.saves))
    print(json.dumps({"benchmark": "checkpointing", "digests": hashed, "saving": saving}))


if __name__ == "__main__":
    main()

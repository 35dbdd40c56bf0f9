"""What recomputation costs and saves: working memory and time of a training step under every remat policy.

    python -m benchmarks.remat --rows 4 --length 512

The shape `34m` of benchmarks/peers/shapes.py, f32, AdamW, fresh weights, one device. Policies take turns, round by
round. Prints one JSON object: working memory of the compiled step in MiB, median milliseconds, both also as ratios to
"none".
"""

import argparse
import json
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, get_args

import jax
import numpy as np

from abi_jax.model.decoder import Decoder, Remat
from abi_jax.model.weight import describe, initialize
from abi_jax.sharding import AxisRules, MeshConfig, make_mesh, use
from abi_jax.sharding.host_memory import keep_memory
from abi_jax.train.config import OptimizerConfig
from abi_jax.train.feed import place_batch
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.step import Objective, initial_state, make_step
from benchmarks.checkpointing import MODEL


def main() -> None:
    """Compiles a step for every policy, runs them in turn, and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_memory()
    mesh, rules = make_mesh(MeshConfig(data=1), jax.devices()[:1]), AxisRules()
    with use(mesh, rules):
        batch = place_batch(_batch(options.rows, options.length), mesh, rules, options.rows)
        steps = {policy: _Step(policy, batch, mesh, rules) for policy in get_args(Remat)}
        for number in range(options.rounds + 1):
            for step in steps.values():
                step.run(counted=number > 0)
    plain = steps["none"]
    report = {
        policy: {
            "working_memory_mib": round(step.memory / 2**20),
            "step_ms": round(1e3 * median(step.seconds)),
            "memory_ratio": round(step.memory / plain.memory, 3),
            "time_ratio": round(median(step.seconds) / median(plain.seconds), 3),
        }
        for policy, step in steps.items()
    }
    print(json.dumps({"shape": "34m", "rows": options.rows, "length": options.length, "policies": report}))


class _Step:
    def __init__(self, policy: Any, batch: dict[str, jax.Array], mesh: Any, rules: AxisRules) -> None:
        graphdef, weights = describe(partial(Decoder, MODEL, remat=policy))
        optimizer = make_optimizer(OptimizerConfig(), 100)
        self._state = initial_state(initialize(weights, jax.random.key(0), mesh=mesh, rules=rules), optimizer)
        self._batch = batch
        step: Any = make_step(Objective(graphdef, False, 1), optimizer)
        self._compiled = step.lower(self._state, None, batch).compile()
        self.memory = self._compiled.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, counted: bool) -> None:
        start = perf_counter()
        self._state, metrics = self._compiled(self._state, None, self._batch)
        jax.block_until_ready(metrics)
        if counted:
            self.seconds.append(perf_counter() - start)


def _batch(rows: int, length: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (rows, length), np.int32)
    ones = np.ones((rows, length), np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
        "segments": ones,
        "roles": ones,
        "group": 0 * ones,
        "weights": ones.astype(np.float32),
    }


if __name__ == "__main__":
    main()

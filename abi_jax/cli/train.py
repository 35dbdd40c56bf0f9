"""Train a model from one configuration file.

The file (see configs/train/) is overridden by environment variables such as ABI_OPTIMIZER__LEARNING_RATE and
by --set. A run that was stopped continues from its last checkpoint when the same command is given again.

  abi train configs/train/demo-backbone.yaml
  abi train configs/train/personas.yaml --set model.init=runs/base --set data.train=chats.jsonl
"""

import argparse
from pathlib import Path
from typing import Any

HELP = "train a backbone, or personas on a frozen one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key (repeatable)",
    )
    parser.add_argument("--profile", action="store_true", help="trace a few steps into OUT/profile")


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Trains and returns the last metrics, in process 0."""
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()  # before JAX starts its threads

    import jax

    from abi_jax.config import load
    from abi_jax.sharding import initialize
    from abi_jax.train.config import TrainConfig
    from abi_jax.train.loop import train

    config = load(TrainConfig, options.config, [*options.overrides, *(["profile=true"] if options.profile else [])])
    initialize()
    metrics = train(config)
    if jax.process_index() != 0:
        return None
    if not options.json:
        loss = f"loss {metrics['loss']:.4f}" if "loss" in metrics else "it was trained already"
        best = f"; best step {metrics['best_step']}" if "best_step" in metrics else ""
        early = ", stopped early" if metrics.get("stopped_early") else ""
        print(f"{config.out}: step {metrics.get('step', config.steps)}{early}, {loss}{best}")
    return {"out": str(config.out), **metrics}

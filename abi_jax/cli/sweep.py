"""Try settings against each other, on folds of the data if you like, and say which is best.

Every combination of the grids is a run of its own below --out; what was run already is not repeated. The metric is
`evaluation.metric` of the configuration, on held-out data, at each run's best step: the values are a little better than
new data would give, so compare them with each other only.

  abi sweep configs/train/personas.yaml --grid optimizer.learning_rate=1e-3,3e-3,1e-2 --out runs/sweep
  abi sweep configs/train/personas.yaml --grid model.persona.core_rank=4,8 --folds 3 --refit --out runs/ranks
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "compare settings, with cross-validation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("config", type=Path, help="training configuration")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=A,B,C", help="values of a key to try (repeatable)"
    )
    parser.add_argument("--folds", type=int, default=0, metavar="K", help="cross-validate on K folds")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="where to write (default: runs/sweep)")
    parser.add_argument("--refit", action="store_true", help="train the best setting again, on everything, in OUT/best")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of all"
    )


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Runs the trials; returns them, the best first."""
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()

    import jax

    from abi_jax.sharding import initialize
    from abi_jax.train.sweep import REPORT, Sweep, run_sweep

    sweep = Sweep(options.config, tuple(options.overrides), _grid(options.grid), options.folds, options.out)
    initialize()
    speaks = jax.process_index() == 0

    def tell(text: str) -> None:
        if speaks:
            print(text, file=sys.stderr, flush=True)

    trials = run_sweep(sweep, options.refit, tell)
    if not speaks:
        return None
    if not options.json:
        for trial in trials:
            spread = f" ± {trial.deviation:.4f}" if len(trial.values) > 1 else ""
            print(f"{trial.mean:.4f}{spread}  {sweep.name(trial.settings)}")
        print(f"figure: {options.out / 'sweep.png'}")
    return {"out": str(options.out), **json.loads((options.out / REPORT).read_text(encoding="utf-8"))}


def _grid(given: list[str]) -> dict[str, tuple[str, ...]]:
    grid: dict[str, tuple[str, ...]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        found = tuple(value.strip() for value in values.split(",") if value.strip())
        if not equals or not key.strip() or not found:
            raise InputError(f"--grid {text!r} is not KEY=A,B; expected e.g. --grid optimizer.learning_rate=1e-3,3e-3")
        if key.strip() in grid:
            raise InputError(f"--grid {text!r}: {key.strip()} is given twice; expected each key once")
        grid[key.strip()] = found
    return grid

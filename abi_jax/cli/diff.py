"""Which tensors differ between two versions of a model, and by how much.

A version is a model directory (its newest step) or directory@step.

  abi diff runs/base runs/personas
  abi diff runs/personas@100 runs/personas@200 --optimizer
"""

import argparse
from typing import Any

from abi_jax.cli.shared import track_tensors

HELP = "which tensors changed, and by how much"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("a", help="model directory, or directory@step")
    parser.add_argument("b", help="the same")
    parser.add_argument("--optimizer", action="store_true", help="compare the optimizer's state, not the weights")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compares, prints the changes and returns them."""
    from dataclasses import asdict

    from abi_jax.model.diff import Version, diff

    item = "optimizer" if options.optimizer else "params"
    changes, same = diff(Version.open(options.a), Version.open(options.b), item, track_tensors)
    if not options.json:
        for change in changes:
            by = "" if change.relative is None else f"{change.relative:10.3g} of its norm, "
            by += "" if change.largest is None else f"at most {change.largest:.3g}"
            print(f"{change.kind:8} {change.name.partition('/')[2]:48} {by}")
        print(f"{len(changes)} tensors differ, {same} are the same")
    return {"changes": [asdict(change) for change in changes], "same": same}

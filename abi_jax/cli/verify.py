"""Check a model against its lineage: links, records, files, and every tensor.

Names each damaged file and the tensors that no longer hold what they held. Exit status 1 where there are any. A run
may go on meanwhile: a step that it has saved and not linked yet is no damage.

  abi verify runs/personas
  abi verify runs/personas --quick      files alone
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import track_tensors

HELP = "find and name damage to a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--quick", action="store_true", help="read tensors only where a file is damaged")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, prints what was found, and returns it."""
    from dataclasses import asdict

    from abi_jax.model.verify import verify

    result = verify(options.model, not options.quick, track_tensors)
    if not options.json:
        for finding in result.findings:
            print(finding)
        for step in result.writing:
            print(f"checkpoints/{step}: not linked yet, by a run that is going on")
        print(
            f"{options.model}: {result.links} links, {result.steps} steps, {result.files} files, "
            f"{result.tensors} tensors: {len(result.findings) or 'no'} damage{'s' if len(result.findings) > 1 else ''}"
        )
    return {"ok": not result.findings, **asdict(result)}

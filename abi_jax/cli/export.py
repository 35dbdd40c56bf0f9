"""Write a model directory as a Hugging Face directory.

With --persona, the persona's terms are merged into the weights where that can be done exactly; the terms that
cannot be are named, and the export does not pretend to have them.

  abi export runs/personas out/ --persona aviva
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import add_mesh, parse_mesh

HELP = "model directory -> Hugging Face directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--persona", default="", metavar="MIX", help="persona or mixture to merge (default: base)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the tensors")
    parser.add_argument("--force", action="store_true", help="replace what OUT holds")
    add_mesh(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Exports and returns what was written and what could not be merged."""
    import numpy as np

    from abi_jax.model.bank import merge_persona
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.model.hf import export_hf
    from abi_jax.persona import parse_mixture

    directory = ModelDirectory.open(options.model)
    config, names = directory.config, [p.name for p in directory.personas]
    mixture = parse_mixture(options.persona, names if config.persona else [])
    params = directory.load_params(mesh=parse_mesh(options.mesh))
    left: tuple[str, ...] = ()
    if config.persona is not None:
        w = np.array([mixture.get(name, 0.0) for name in names], np.float32)
        merged = merge_persona(config, params, np.pad(w, (0, config.persona.capacity - len(w))))
        config, params, left = merged.config, merged.params, merged.left_out
    export_hf(config, params, options.out, directory.path / "tokenizer", dtype=options.dtype, force=options.force)
    for term in left:
        print(f"not merged, no Hugging Face equivalent: {term}", file=sys.stderr)
    if not options.json:
        print(f"{options.out}: {config.architecture}")
    return {"out": str(options.out), "architecture": config.architecture, "mixture": mixture, "not_merged": list(left)}

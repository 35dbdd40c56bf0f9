"""Turn a Hugging Face directory into a model directory.

Reads safetensors straight to their shards; GPT-2, Llama 2 and 3, Mistral, Qwen 2 and 3 and Gemma 2 are known.
Tokenizer and chat template are kept. Persona terms are added by `abi train`.

  abi import ~/models/Qwen3-0.6B runs/base
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import add_mesh, parse_mesh

HELP = "Hugging Face directory -> model directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("source", type=Path, help="directory with config.json, safetensors and tokenizer files")
    parser.add_argument("out", type=Path, help="model directory to write; must not exist")
    add_mesh(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Imports and returns what was imported."""
    from abi_jax.lineage_seal import seal_files
    from abi_jax.model.directory import check_new
    from abi_jax.model.hf import import_hf
    from abi_jax.model.provenance import write_model
    from abi_jax.text import Tokenizer

    check_new(options.out)
    tokenizer = Tokenizer.load(options.source)
    config, params = import_hf(options.source, parse_mesh(options.mesh))
    source = options.source.expanduser()
    files = [source / "config.json", *source.glob("*.safetensors")]
    directory = write_model(options.out, config, tokenizer, (), params, seal_files(source, files))
    summary = {"out": str(directory.path), "architecture": config.architecture, "parameters": _count(params)}
    if not options.json:
        print(f"{options.out}: {summary['architecture']}, {summary['parameters']:,} parameters")
    return summary


def _count(params: Any) -> int:
    import jax

    return sum(x.size for x in jax.tree.leaves(params))

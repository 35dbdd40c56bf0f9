"""What a configuration costs: parameters, FLOPs, and bytes per device on a mesh. Nothing is allocated.

abi info configs/model/llama3-8b.yaml --mesh fsdp=32,tensor=8
abi info runs/personas
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import mesh_config
from abi_jax.errors import InputError

HELP = "parameters, FLOPs and memory per device of a configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", help="model directory, Hugging Face directory, YAML file, or a name in configs/model")
    parser.add_argument("--mesh", default="data=1", metavar="AXES", help="axes and sizes, e.g. fsdp=32,tensor=8")
    parser.add_argument("--length", type=int, default=4096, metavar="T", help="tokens of a training row")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="rows a data-parallel device")
    parser.add_argument("--optimizer", choices=("adamw", "adafactor", "none"), default="adamw", help="its state counts")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Computes and prints the table."""
    from abi_jax.model.costs import costs

    table = costs(_config(options.model), mesh_config(options.mesh), options.length, options.batch, options.optimizer)
    if not options.json:
        for name, value in table.items():
            print(f"{name.replace('_', ' '):34s} {_readable(name, value)}")
    return table


def _config(name: str) -> Any:
    from abi_jax.config import find_config, load
    from abi_jax.model.config import ModelConfig
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.model.hf import read_hf_config

    path = Path(name)
    if (path / "model.yaml").is_file():
        return ModelDirectory.open(path).config
    if (path / "config.json").is_file():
        return read_hf_config(path)
    if path.is_dir():
        raise InputError(f"{name!r} holds neither model.yaml nor config.json")
    return load(ModelConfig, find_config(name, "model"), env={})


def _readable(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if "bytes" in name:
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:,.2f} {unit}"
        return f"{value} B"
    return f"{value:,}"

"""Large models on 256 devices that are not there: is the training step lowered, and what does a device hold?

    python -m benchmarks.lower_256 --models llama3-8b llama3-70b --mesh fsdp=32,tensor=8

Each configuration of configs/model is traced and lowered whole, three personas included, for an abstract mesh;
nothing is allocated. Prints one JSON object: seconds, size of the program, and bytes per device of weights,
optimizer state and activations.
"""

import argparse
import json
from dataclasses import replace
from time import perf_counter
from typing import Any

import jax

from abi_jax.cli.shared import mesh_config
from abi_jax.config import find_config, load
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.costs import costs
from abi_jax.train.lower import lower_step

DEVICES = 256


def measure(name: str, mesh: str, rows: int, length: int) -> dict[str, Any]:
    """Lowers one configuration and returns what it takes."""
    config = replace(load(ModelConfig, find_config(name, "model"), env={}), persona=PersonaShape(capacity=3))
    start = perf_counter()
    step = lower_step(config, mesh_config(mesh), DEVICES, rows, length)
    seconds = perf_counter() - start
    axes = mesh_config(mesh)
    table = costs(config, axes, length, max(rows // (axes.data * axes.fsdp), 1))
    return {
        "parameters": table["parameters"],
        "persona_parameters": table["persona_parameters"],
        "seconds_to_lower": round(seconds, 1),
        "program_lines": step.lowered.as_text().count("\n"),
        "state_bytes_per_device": step.state_bytes,
        "batch_bytes_per_device": step.batch_bytes,
        "gradient_bytes_per_device": table["weight_bytes_per_device_f32"],
        "activation_bytes_per_device": table["training_activation_bytes_per_device"],
        "training_gib_per_device": round(table["training_bytes_per_device"] / 2**30, 2),
        "serving_gib_per_device_bf16": round(table["weight_bytes_per_device_bf16"] / 2**30, 2),
    }


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama3-8b", "llama3-70b"], help="names in configs/model")
    parser.add_argument("--mesh", default="fsdp=32,tensor=8", help="axes and sizes; their product is 256")
    parser.add_argument("--rows", type=int, default=32, help="rows of a global batch")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
    args = parser.parse_args()
    results = {name: measure(name, args.mesh, args.rows, args.length) for name in args.models}
    settings = {"devices": DEVICES, "mesh": args.mesh, "rows": args.rows, "length": args.length}
    print(json.dumps({"benchmark": "lower_256", "jax": jax.__version__, **settings, "results": results}))


if __name__ == "__main__":
    main()

"""What a model costs on a mesh, from its descriptions alone."""

from functools import partial
from math import prod
from typing import Any

import jax
from jax.sharding import PartitionSpec

from abi_jax.errors import InputError
from abi_jax.model.bank import BANK
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import count, describe, map_weights
from abi_jax.sharding.mesh import MeshConfig, abstract_mesh
from abi_jax.sharding.rules import AxisRules, check_divides

MOMENTS = {"adamw": 2, "adafactor": 0, "none": 0}


def costs(
    config: ModelConfig, mesh: MeshConfig, length: int = 4096, batch: int = 1, optimizer: str = "adamw"
) -> dict[str, Any]:
    """Parameters, FLOPs per token, and bytes per device.

    `batch` rows of `length` tokens stand on each data-parallel device. Masters and gradients are f32, moments
    too (Adafactor's are too small to count); activations are the bf16 residual stream of every block, as full
    remat keeps them, plus the f32 logits. Raises `InputError` where the mesh does not divide a weight.
    """
    for name, value in (("length", length), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name} = {value}; expected at least 1")
    devices = prod(s for s in mesh.sizes(1 if -1 in _sizes(mesh) else prod(_sizes(mesh))))
    grid = abstract_mesh(mesh, devices)
    rules = AxisRules()
    _, weights = describe(partial(Decoder, config))

    def shard(path: str, weight: Any) -> int:
        spec = rules.spec(weight.axes, grid)
        check_divides(weight.shape, weight.axes, spec, grid, path)
        return weight.size // _ways(spec, grid)

    leaves = jax.tree.leaves(map_weights(shard, weights))
    total, local = count(weights), sum(leaves)
    persona = count(weights.get(BANK, {}))
    tokens = batch * length // max(grid.shape["sequence"], 1)
    activations = (
        2 * tokens * config.d_model * config.num_layers + 4 * tokens * config.vocab_size // grid.shape["tensor"]
    )
    state = 4 * local * (2 + MOMENTS[optimizer])
    return {
        "parameters": total,
        "persona_parameters": persona,
        "devices": devices,
        "forward_flops_per_token": config.flops_per_token(length),
        "training_flops_per_token": config.flops_per_token(length, training=True),
        "kv_cache_bytes_per_token_bf16": config.kv_bytes_per_token(2),
        "weight_bytes_f32": 4 * total,
        "weight_bytes_bf16": 2 * total,
        "weight_bytes_per_device_f32": 4 * local,
        "weight_bytes_per_device_bf16": 2 * local,
        "training_state_bytes_per_device": state,
        "training_activation_bytes_per_device": activations,
        "training_bytes_per_device": state + activations,
    }


def _sizes(mesh: MeshConfig) -> tuple[int, ...]:
    return (mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence, mesh.expert, mesh.stage)


def _ways(spec: PartitionSpec, mesh: Any) -> int:
    names = (name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ()))
    return prod(mesh.shape[name] for name in names)

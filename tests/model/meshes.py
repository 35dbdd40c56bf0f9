"""The meshes of 8 simulated devices, and a model that all of them divide."""

from dataclasses import replace
from functools import cache, partial

import jax
import pytest
from jax.sharding import Mesh

from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import Tree, describe, initialize, map_weights
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.cases import KEY, LLAMA, SHAPE
from tests.thorough import usual

MESHES = {
    name: partial(make_mesh, config)
    for name, config in {
        "data": MeshConfig(data=8),
        "fsdp": MeshConfig(data=1, fsdp=8),
        "tensor": MeshConfig(data=1, tensor=8),
        "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
        "sequence": MeshConfig(data=2, sequence=4),
    }.items()
}
EACH_MESH = pytest.mark.parametrize("mesh", usual(MESHES, ["2x2x2", "sequence"]))
CONFIG = replace(LLAMA, num_heads=8, num_kv_heads=8, qkv_bias=True, sliding_window=9, persona=SHAPE)


@cache
def wide(mesh: Mesh | None = None) -> tuple[ModelConfig, Tree]:
    """A model of 8 key-value heads whose personas speak; made on `mesh`, with the same values everywhere."""
    _, weights = describe(partial(Decoder, CONFIG))
    params = initialize(map_weights(lambda _, w: replace(w, init="normal", scale=0.3), weights), KEY, mesh=mesh)
    return CONFIG, jax.tree.map(lambda x: x + 1 if x.ndim == 1 else x, params)


def sharded(name: str) -> tuple[ModelConfig, Tree]:
    """The same, made on a mesh of `MESHES`."""
    return wide(MESHES[name]())

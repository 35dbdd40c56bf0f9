"""What searches on the mesh that somebody gives. Imports JAX, so it is imported where a mesh is."""

from typing import Any

from jax.sharding import Mesh

from abi_jax.errors import InputError
from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig
from abi_jax.wdbx.search.mesh import on_mesh as search_on


def on_mesh(mesh: Any, config: MeshSearchConfig | None = None) -> MeshSearch:
    """What searches on a mesh, or `mesh` itself where it does. Raises `InputError` where it is anything else."""
    found = search_on(mesh, config) if isinstance(mesh, Mesh | MeshSearch) else None
    if found is None:
        raise InputError(f"mesh {mesh!r:.60} is of type {type(mesh).__name__}; expected a jax.sharding.Mesh")
    return found

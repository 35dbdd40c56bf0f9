"""Devices: the mesh, the rules from named axes to it, and starting many processes.

Names are loaded on first use, so that `simulate`, `cluster` and `local` work before, or without, JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abi_jax.sharding.cluster import Cluster, detect
    from abi_jax.sharding.context import constrain, current_mesh, current_rules, use
    from abi_jax.sharding.distributed import initialize
    from abi_jax.sharding.mesh import AXES, MeshConfig, abstract_mesh, describe, make_mesh
    from abi_jax.sharding.rules import DEFAULT_TABLE, Axes, AxisRules, check_divides
    from abi_jax.sharding.simulate import simulated_devices

__all__ = [
    "AXES",
    "DEFAULT_TABLE",
    "Axes",
    "AxisRules",
    "Cluster",
    "MeshConfig",
    "abstract_mesh",
    "check_divides",
    "constrain",
    "current_mesh",
    "current_rules",
    "describe",
    "detect",
    "initialize",
    "make_mesh",
    "simulated_devices",
    "use",
]

_HOMES = {
    "cluster": ("Cluster", "detect"),
    "context": ("constrain", "current_mesh", "current_rules", "use"),
    "distributed": ("initialize",),
    "mesh": ("AXES", "MeshConfig", "abstract_mesh", "describe", "make_mesh"),
    "rules": ("DEFAULT_TABLE", "Axes", "AxisRules", "check_divides"),
    "simulate": ("simulated_devices",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"abi_jax.sharding.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

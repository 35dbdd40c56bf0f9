"""The current mesh and rules, so that model code can name axes without being handed either.

    with use(mesh, rules):
        step(params, batch)        # inside: x = constrain(x, ("batch", "length", None))

Both belong to the thread that enters `use`, like JAX's own contexts, and both are part of `jax.jit`'s
cache key: a function traced under one mesh or one table is traced again under another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from abi_jax.sharding.rules import AxisRules

# jit compares contexts by value, so the table is held in a hashable form.
_Key = tuple[tuple[str, tuple[str, ...]], ...]
_table = jax.make_user_context(default_value=None)
_platform = jax.make_user_context(default_value=None)


@contextmanager
def use(mesh: Mesh | AbstractMesh, rules: AxisRules | None = None) -> Iterator[None]:
    """Makes `mesh` and `rules` (default: `AxisRules()`) current.

    An abstract mesh serves to trace and lower only. Enter it outside `jax.jit`.
    """
    key: _Key = tuple(sorted((name, tuple(axes)) for name, axes in (rules or AxisRules()).table.items()))
    setter = jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh)
    with setter, _table(key):
        yield


def current_mesh() -> AbstractMesh | None:
    """Returns the shape of the current mesh, also while tracing; None when there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def current_rules() -> AxisRules:
    """Returns the current rules, the defaults outside `use`."""
    key: _Key | None = _table.value
    return AxisRules() if key is None else AxisRules(dict(key))


@contextmanager
def lowering_for(platform: str) -> Iterator[None]:
    """Makes `platform` current ("cpu", "gpu" or "tpu"), to trace a program for devices that are elsewhere."""
    with _platform(platform):
        yield


def current_platform() -> str:
    """Returns the platform that programs are traced for: the default backend's, outside `lowering_for`."""
    return _platform.value or jax.default_backend()


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay `x` out as its named `axes` say; returns `x` itself without a mesh.

    A dimension takes only as many of its mesh axes as divide it, so a batch of 1 on 8 data devices is
    simply copied. Axes that `jax.shard_map` has already split by hand are left alone. Raises `InputError`
    for a name without a rule and for two names on one mesh axis.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    if len(axes) != x.ndim:
        raise ValueError(f"axes {tuple(axes)} name {len(axes)} dimensions, the array has shape {x.shape}")
    spec = current_rules().spec(tuple(axes), mesh)
    if mesh.size == 1:
        return x  # the names were checked; there is nothing to lay out
    fitted = PartitionSpec(*(_fit(size, entry, mesh) for size, entry in zip(x.shape, spec, strict=True)))
    return jax.lax.with_sharding_constraint(x, fitted)


def everywhere(like: jax.Array | jax.ShapeDtypeStruct) -> Sharding:
    """Returns the sharding of something that is whole on each device that holds a part of `like`."""
    placed = like.sharding
    return NamedSharding(placed.mesh, PartitionSpec()) if isinstance(placed, NamedSharding) else placed


def _fit(size: int, entry: str | tuple[str, ...] | None, mesh: AbstractMesh) -> str | tuple[str, ...] | None:
    """Returns the longest prefix of the mesh axes in `entry` that divides `size`."""
    automatic = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    names = (entry,) if isinstance(entry, str) else entry or ()
    usable = tuple(a for a in names if a in automatic)
    while usable and size % prod(mesh.shape[a] for a in usable):
        usable = usable[:-1]
    return usable or None

"""One table from logical axis names to mesh axes.

Weights and activations name their dimensions ("embed", "heads", ...); this table alone says
which mesh axis splits each of them. Two dimensions of one array that land on the same mesh
axis are an error here, not a surprise in the compiler.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from abi_jax.errors import InputError

Axes = tuple[str | None, ...]

DEFAULT_TABLE: Mapping[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    # weights
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "head_dim": (),
    "position": (),
    "norm": (),
    # personas are small: replicated, so that mixing them never communicates
    "persona": (),
    "layer": (),
    "rank": (),
    "role": (),
    "feature": (),
}


@dataclass(frozen=True)
class AxisRules:
    """Logical axis -> mesh axes. Names missing from `table` are errors."""

    table: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_TABLE))

    def spec(self, axes: Axes, mesh: Mesh | jax.sharding.AbstractMesh | None = None) -> PartitionSpec:
        """Returns the PartitionSpec of an array whose dimensions are named `axes`.

        With `mesh`, mesh axes it does not have are dropped. Raises `InputError` for an unknown
        name and for two dimensions on one mesh axis.
        """
        used: dict[str, str] = {}
        entries: list[str | tuple[str, ...] | None] = []
        for name in axes:
            if name is not None and name not in self.table:
                raise InputError(f"logical axis {name!r} of {axes} has no rule; known: {', '.join(sorted(self.table))}")
            targets = tuple(a for a in self.table[name] if mesh is None or a in mesh.axis_names) if name else ()
            for target in targets:
                if target in used:
                    raise InputError(
                        f"logical axes {used[target]!r} and {name!r} of {axes} both map to mesh axis {target!r}"
                    )
                used[target] = str(name)
            entries.append(None if not targets else targets[0] if len(targets) == 1 else targets)
        return PartitionSpec(*entries)

    def sharding(
        self,
        axes: Axes,
        mesh: Mesh | jax.sharding.AbstractMesh,
        shape: Sequence[int] | None = None,
        what: str = "array",
    ) -> NamedSharding:
        """Returns the NamedSharding on `mesh`; with `shape`, checks that the mesh divides it."""
        spec = self.spec(axes, mesh)
        if shape is not None:
            check_divides(shape, axes, spec, mesh, what)
        return NamedSharding(mesh, spec)


def check_divides(
    shape: Sequence[int], axes: Axes, spec: PartitionSpec, mesh: Mesh | jax.sharding.AbstractMesh, what: str
) -> None:
    """Raises `InputError` naming the dimension when `mesh` does not divide `shape` evenly."""
    for size, name, entry in zip(shape, axes, spec, strict=True):
        parts = (entry,) if isinstance(entry, str) else tuple(entry or ())
        ways = prod(mesh.shape[p] for p in parts)
        if size % ways:
            raise InputError(
                f"{what}: dimension {name!r} of size {size} does not divide by {ways} "
                f"(mesh axes {', '.join(f'{p}={mesh.shape[p]}' for p in parts)}); choose sizes that divide {size}"
            )

"""One description of each weight: its shape, its sharding and its initialisation.

Modules hold `nnx.Param(Weight(...))` when they are built, so building a model allocates
nothing. The tree of descriptions is then turned into abstract arrays (`abstract`), into
shardings (`shardings`) or into real arrays (`initialize`) by the functions below.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from abi_jax.sharding.rules import Axes, AxisRules

Tree = Any


@dataclass(frozen=True)
class Weight:
    """A weight before it has a value.

    `axes` names each dimension for `AxisRules`; `init` is "normal" (standard deviation `scale`),
    "zeros" or "ones". Matrices are stored `[out, in]`, as Hugging Face stores them.
    """

    shape: tuple[int, ...]
    axes: Axes
    init: str = "normal"
    scale: float = 0.02

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in rank")

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def make(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Returns the initial value, `shape`, `dtype`."""
        match self.init:
            case "zeros":
                return jnp.zeros(self.shape, dtype)
            case "ones":
                return jnp.ones(self.shape, dtype)
            case "normal":
                return (jax.random.normal(key, self.shape, jnp.float32) * self.scale).astype(dtype)
        raise ValueError(f"unknown init {self.init!r}; known: normal, zeros, ones")


def param(shape: tuple[int, ...], axes: Axes, init: str = "normal", scale: float = 0.02) -> nnx.Param:
    """Declares a weight of an NNX module."""
    return nnx.Param(Weight(shape, axes, init, scale))


def describe(build: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Tree]:
    """Splits the module that `build` makes into its structure and a nested dict of `Weight`."""
    graphdef, state = nnx.split(build())
    return graphdef, _string_keys(nnx.to_pure_dict(state))


def merge(graphdef: nnx.GraphDef, params: Tree) -> Any:
    """Returns the module with `params` (a nested dict of arrays) in place. Call it inside `jax.jit`."""
    return nnx.merge(graphdef, _int_keys(params))


def is_weight(x: Any) -> bool:
    """True for the leaves of a tree of descriptions."""
    return isinstance(x, Weight)


def map_weights(f: Callable[[str, Weight], Any], weights: Tree) -> Tree:
    """Applies `f(path, weight)` to every leaf; a path reads like `layers.0.attention.q.kernel`."""
    return jax.tree_util.tree_map_with_path(lambda p, w: f(path_name(p), w), weights, is_leaf=is_weight)


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a tree path as dotted names."""
    return ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)


def count(weights: Tree) -> int:
    """Number of parameters in a tree of descriptions."""
    return sum(w.size for w in jax.tree.leaves(weights, is_leaf=is_weight))


def shardings(weights: Tree, mesh: Mesh, rules: AxisRules) -> Tree:
    """Returns the NamedSharding of every weight; `InputError` names the one the mesh does not divide."""
    return map_weights(lambda path, w: rules.sharding(w.axes, mesh, w.shape, path), weights)


def abstract(
    weights: Tree,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | AbstractMesh | None = None,
    rules: AxisRules | None = None,
) -> Tree:
    """Returns a `jax.ShapeDtypeStruct` for every weight, sharded over `mesh` when there is one."""
    if mesh is None:
        return map_weights(lambda _, w: jax.ShapeDtypeStruct(w.shape, dtype), weights)
    placed = rules or AxisRules()
    return map_weights(
        lambda path, w: jax.ShapeDtypeStruct(w.shape, dtype, sharding=placed.sharding(w.axes, mesh, w.shape, path)),
        weights,
    )


def initialize(
    weights: Tree,
    key: jax.Array,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> Tree:
    """Returns initial values, made where they live.

    Each weight's key is derived from its path, so a value depends neither on the mesh nor on
    which other weights exist.
    """

    def make(key: jax.Array) -> Tree:
        return map_weights(
            lambda path, w: w.make(jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF), dtype), weights
        )

    out = None if mesh is None else shardings(weights, mesh, rules or AxisRules())
    return jax.jit(make, out_shardings=out)(key)


def _string_keys(tree: Tree) -> Tree:
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _int_keys(tree: Tree) -> Tree:
    if not isinstance(tree, dict):
        return tree
    return {(int(k) if k.isdigit() else k): _int_keys(v) for k, v in tree.items()}

"""A user's own adaptation, theta_user: one more core for every adapter, and one more embedding.

`dW_w = B (sum_p w_p C_p + C_user) A` and `D_w = sum_p w_p (e_p + B_p A T) + e_user`. It needs `A` and `B` of the bank
and changes nothing of it: tens of kilobytes a user, and one that is deleted leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.persona import CORE_TARGETS

EMBEDDING = "embedding"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UserTerms:
    """Of one user, or of rows with one each.

    embedding f32 `[..., D]`, None in a model without injection; cores f32 `[..., L, N, r, r]` by the input they share,
    a key of `CORE_TARGETS`.
    """

    embedding: Any = None
    cores: Mapping[str, Any] = field(default_factory=dict)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The arrays of a user's adaptation, by name. Raises `InputError` for a model that has no place for one."""
    shape = config.persona
    if shape is None or not (shape.core_rank or shape.injection):
        raise InputError(
            "the model has no core adapters and no injection, so that a user's adaptation has no place in it"
        )
    found: dict[str, tuple[int, ...]] = {}
    if shape.injection:
        found[EMBEDDING] = (config.d_model,)
    if shape.core_rank:
        for name in ("qkv", "o", "up", "down") if shape.core_mlp else ("qkv", "o"):
            found[f"cores.{name}"] = (config.num_layers, len(CORE_TARGETS[name]), shape.core_rank, shape.core_rank)
    return found


def from_arrays(config: ModelConfig, arrays: Mapping[str, np.ndarray], where: str) -> UserTerms:
    """An adaptation from its arrays by name. Raises `InputError` that names `where` and what does not fit."""
    expected = shapes(config)
    if set(arrays) != set(expected):
        raise InputError(
            f"{where} holds {', '.join(sorted(arrays)) or 'nothing'}; expected {', '.join(sorted(expected))}"
        )
    for name, array in arrays.items():
        if array.shape != expected[name] or array.dtype.kind not in "fV":
            raise InputError(f"{where}: {name} is {array.dtype} {array.shape}; expected numbers {expected[name]}")
        if not np.isfinite(array.astype(np.float32)).all():
            raise InputError(f"{where}: {name} holds NaN or infinity; expected finite numbers")
    cores = {n.removeprefix("cores."): np.asarray(a, np.float32) for n, a in arrays.items() if n != EMBEDDING}
    embedding = arrays.get(EMBEDDING)
    return UserTerms(None if embedding is None else np.asarray(embedding, np.float32), cores)


def to_arrays(terms: UserTerms) -> dict[str, np.ndarray]:
    """The arrays of one user's adaptation, by name."""
    found = {f"cores.{name}": np.asarray(core) for name, core in terms.cores.items()}
    return found if terms.embedding is None else {EMBEDDING: np.asarray(terms.embedding), **found}


def new_table(config: ModelConfig, users: int) -> UserTerms:
    """Adaptations of zeros, one a row."""
    zeros = {name: jnp.zeros((users, *shape), jnp.float32) for name, shape in shapes(config).items()}
    cores = {name.removeprefix("cores."): array for name, array in zeros.items() if name != EMBEDDING}
    return UserTerms(zeros.get(EMBEDDING), cores)

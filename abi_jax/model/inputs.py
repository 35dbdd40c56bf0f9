"""What the decoder is given: tokens, and for each of them who speaks and who may read what."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.model.users import UserTerms


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """One batch of token rows.

    tokens, positions, segments, roles: int32 `[B, T]`; segment 0 is padding. `mixture` f32 `[B, T, P]` is
    the persona mixture of every token, zero where the base model speaks; None leaves the persona terms
    out of the program altogether. `readable` bool `[B, T, R]`: the roles a token may attend to
    beside its own. `user`: each row's own adaptation, where a row is one token. `packed`: rows hold more than
    one segment (padding at the end of a row does not count).
    """

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    roles: jax.Array
    mixture: jax.Array | None = None
    readable: jax.Array | None = None
    user: UserTerms | None = None
    packed: bool = field(default=True, metadata={"static": True})


def plain_inputs(tokens: jax.Array | np.ndarray, role: int = 4) -> Inputs:
    """Inputs for bare rows `[B, T]` of one segment each, without personas."""
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    ones = jnp.ones_like(tokens)
    return Inputs(tokens, positions, ones, role * ones, packed=False)


def gated_mixture(w: jax.Array | np.ndarray, active: jax.Array | np.ndarray) -> jax.Array:
    """Spreads request mixtures `[B, P]` over the positions `active` `[B, T]`: f32 `[B, T, P]`."""
    return jnp.asarray(w, jnp.float32)[:, None, :] * jnp.asarray(active)[..., None]

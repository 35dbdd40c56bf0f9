"""What training minimises."""

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs

Arrays = dict[str, jax.Array]


def inputs_of(
    batch: Arrays, persona: bool, reads: np.ndarray | None = None, strict: np.ndarray | None = None
) -> Inputs:
    """The decoder's inputs from a packed batch; see `data.packing.assemble` for its arrays.

    reads bool `[P, R]`, strict bool `[P]`: the personas' reading rules, or None when all read everything.
    """
    mixture = batch["mixture"] if persona else None
    readable = None
    if mixture is not None and reads is not None:
        bound = mixture > 0
        if strict is not None and strict.any():
            same = (batch["segments"][:, :, None] == batch["segments"][:, None, :]).astype(jnp.float32)
            bound |= strict & (jnp.einsum("bts,bsp->btp", same, bound.astype(jnp.float32)) > 0)
        readable = ~jnp.any(bound[..., None] & ~jnp.asarray(reads), axis=2)
    return Inputs(batch["tokens"], batch["positions"], batch["segments"], batch["roles"], mixture, readable)


def token_losses(model: Decoder, inputs: Inputs, targets: jax.Array) -> jax.Array:
    """Cross-entropy of every position's target, f32 `[B, T]`, in nats."""
    h, _ = model.hidden(inputs)
    logits = model.logits(h, inputs.mixture)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of `losses` under `weights`, both `[B, T]`; zero when all weights are.

    Summed row by row, then over rows: one long f32 sum would round differently on every mesh.
    """
    both = jnp.stack([losses, jnp.ones_like(losses)])
    total, weight = jnp.sum(jnp.einsum("nbt,bt->nb", both, weights), axis=1)
    return total / jnp.maximum(weight, 1e-9)


def group_sums(losses: jax.Array, weights: jax.Array, group: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Sums of the counted losses and the number of counted tokens of every group, f32 `[groups]` each."""
    counted = (weights > 0).astype(jnp.float32)
    member = jax.nn.one_hot(group, groups) * counted[..., None]
    return jnp.einsum("bt,btg->g", losses, member), jnp.sum(member, axis=(0, 1))

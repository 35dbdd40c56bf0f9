"""What training minimises."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs

Arrays = dict[str, jax.Array]
BATCH_AXES = ("batch", "length")


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
    return cross_entropy(model(inputs), targets)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`-log softmax(logits)[target]` in nats: logits f32 `[B, T, V]` and targets `[B, T]` to f32 `[B, T]`."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of `losses` under `weights`, both `[B, T]`; zero when all weights are.

    Summed in short pieces, then by row, then over rows: one long f32 sum rounds differently on every mesh, and one of
    equal weights rounds the same way at every step.
    """
    piece = math.gcd(losses.shape[1], 32)
    both = jnp.stack([losses, jnp.ones_like(losses)]) * weights
    total, weight = jnp.sum(jnp.sum(jnp.sum(both.reshape(*both.shape[:2], -1, piece), axis=3), axis=2), axis=1)
    return total / jnp.maximum(weight, 1e-9)


def loss_gap(losses: jax.Array, weights: jax.Array, attribute: jax.Array, groups: int) -> jax.Array:
    """`L_bias`: the variance of the mean losses of an attribute's groups (V-REx, arXiv:2003.00688, equation 8).

    attribute int32 `[B, T]`: 0 where a token has no group, else 1 to `groups`. Groups without a counted token in the
    batch take no part; with fewer than two, the gap is 0.
    """
    sums, counts = (x[1:] for x in group_sums(losses, weights, attribute, groups + 1))
    there = (counts > 0).astype(jnp.float32)
    means = sums / jnp.maximum(counts, 1.0)
    number = jnp.maximum(jnp.sum(there), 1.0)
    centre = jnp.sum(there * means) / number
    return jnp.sum(there * (means - centre) ** 2) / number


def group_sums(losses: jax.Array, weights: jax.Array, group: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Sums of the counted losses and the number of counted tokens of every group, f32 `[groups]` each."""
    counted = (weights > 0).astype(jnp.float32)
    member = jax.nn.one_hot(group, groups) * counted[..., None]
    return jnp.einsum("bt,btg->g", losses, member), jnp.sum(member, axis=(0, 1))


def group_means(names: Sequence[str], sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """What `group_sums` gave, as the mean loss of every group that has a counted token."""
    return {n: float(total / count) for n, total, count in zip(names, sums, counts, strict=True) if count}

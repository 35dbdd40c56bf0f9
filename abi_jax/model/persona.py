"""Personas as mathematics: factored attention masks, gated injection, persona heads, core adapters.

Every function takes the mixture of each token, `w` f32 `[B, T, P]`: a row on the simplex where the persona
acts, a row of zeros where the token is the base model's. All terms are linear in `w` (the heads: a softmax
weighted by it), so a row of zeros adds exactly zero, and all of them are zero at initialisation.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from abi_jax.model.attention import Bias
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.weight import param
from abi_jax.text.roles import NUM_ROLES

PERSONA_PARTS = frozenset({"masks", "cores", "key_features", "injection", "persona_heads"})
NUM_POSITION_FEATURES = 4


def num_features(shape: PersonaShape) -> int:
    """Width `F` of the key features that all personas, layers and heads share."""
    return NUM_ROLES + NUM_POSITION_FEATURES + shape.mask_lexical


class KeyFeatures(nnx.Module):
    """`v(j)`: role one-hot, position, a small learned lexical feature."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        self.lexical = param((shape.mask_lexical, config.d_model), ("feature", "embed"), scale=config.d_model**-0.5)

    def __call__(self, embedded: jax.Array, roles: jax.Array, positions: jax.Array) -> jax.Array:
        """From base embeddings `[B, S, D]`, roles and positions `[B, S]` to f32 `[B, S, F]`, entries in [-1, 1]."""
        x = embedded.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        lexical = jnp.tanh(jnp.einsum("bsd,fd->bsf", x, self.lexical.get_value().astype(jnp.float32)))
        p = positions[..., None].astype(jnp.float32)
        place = jnp.concatenate([jnp.exp(-p / 16), jnp.exp(-p / 128), jnp.log1p(p) / 12, jnp.ones_like(p)], axis=-1)
        return jnp.concatenate([jax.nn.one_hot(roles, NUM_ROLES), place, lexical], axis=-1)


class MaskQueries(nnx.Module):
    """`u_p(role(i))` of one layer: `[P, R, H, F]`, bounded by `c tanh(u / c)` before it is mixed."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        sizes = (shape.capacity, NUM_ROLES, config.num_heads, num_features(shape))
        self.u = param(sizes, ("persona", "role", "heads", "feature"), "zeros")
        self.bound = shape.mask_bound

    def __call__(self, w: jax.Array, roles: jax.Array, features: jax.Array) -> Bias:
        """The bias of queries with mixture `[B, T, P]` and roles `[B, T]` on keys with features `[B, S, F]`."""
        u = self.bound * jnp.tanh(self.u.get_value().astype(jnp.float32) / self.bound)
        of_role = w[..., None] * jax.nn.one_hot(roles, NUM_ROLES)[..., None, :]
        return Bias(jnp.einsum("btpr,prhf->bthf", of_role, u), features)


class Injection(nnx.Module):
    """`T = a T_base + (1 - a) T_persona`, computed as `T_base + (1 - a) D_w`: bitwise the base at `D_w = 0`."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        D, P, r = config.d_model, shape.capacity, shape.injection_rank
        self.embedding = param((P, D), ("persona", "embed"), "zeros")
        self.down = param((r, D), ("rank", "embed"), scale=D**-0.5)
        self.up = param((P, r, D), ("persona", "rank", "embed"), "zeros")
        self.gate = param((2 * D,), (None,), "zeros") if shape.gate else None
        self.gate_bias = param((1,), (None,), "zeros") if shape.gate else None

    def __call__(self, base: jax.Array, w: jax.Array) -> jax.Array:
        """`[B, T, D]` base embeddings and mixture `[B, T, P]` to the embeddings the first layer sees."""
        w = w.astype(base.dtype)
        inner = jnp.einsum("btd,rd->btr", base, self.down.get_value().astype(base.dtype))
        shift = jnp.einsum("btp,pd->btd", w, self.embedding.get_value().astype(base.dtype))
        shift += jnp.einsum("btpr,prd->btd", w[..., None] * inner[..., None, :], self.up.get_value().astype(base.dtype))
        if self.gate is None or self.gate_bias is None:
            return base + shift
        on_base, on_persona = jnp.split(self.gate.get_value().astype(base.dtype), 2)
        a = jax.nn.sigmoid(base @ on_base + (base + shift) @ on_persona + self.gate_bias.get_value().astype(base.dtype))
        return base + (1 - a)[..., None] * shift


class PersonaHeads(nnx.Module):
    """`h' = h + sum_p pi_p B_p A_p h` with `pi_p` proportional to `w_p exp(r_p . h)`."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        D, P, r = config.d_model, shape.capacity, shape.head_rank
        self.route = param((P, D), ("persona", "embed"), "zeros")
        self.down = param((P, r, D), ("persona", "rank", "embed"), scale=D**-0.5)
        self.up = param((P, r, D), ("persona", "rank", "embed"), "zeros")

    def mixture(self, h: jax.Array, w: jax.Array) -> jax.Array:
        """Returns `pi`, f32 `[B, T, P]`: on the simplex, or zero where `w` is zero."""
        scores = jnp.einsum("btd,pd->btp", h.astype(jnp.float32), self.route.get_value().astype(jnp.float32))
        # the weight goes into the exponent: beside it, a tiny weight with a large score would leave 0 / 0
        scores = jnp.where(w > 0, scores + jnp.log(jnp.where(w > 0, w, 1.0)), -jnp.inf)
        peak = jnp.max(scores, axis=-1, keepdims=True)
        weighted = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0.0))
        total = jnp.sum(weighted, axis=-1, keepdims=True)
        return weighted / jnp.where(total > 0, total, 1.0)

    def __call__(self, h: jax.Array, w: jax.Array) -> jax.Array:
        """`[B, T, D]` final hidden states to those the LM head sees."""
        pi = self.mixture(h, w).astype(h.dtype)
        inner = jnp.einsum("btd,prd->btpr", h, self.down.get_value().astype(h.dtype)) * pi[..., None]
        return h + jnp.einsum("btpr,prd->btd", inner, self.up.get_value().astype(h.dtype))


class CoreAdapter(nnx.Module):
    """`dW_w x = B (sum_p w_p C_p) A x`: `A` and `B` shared, one `r x r` core a persona."""

    def __init__(self, size_in: int, size_out: int, axes: tuple[str, str], shape: PersonaShape) -> None:
        r = shape.core_rank
        self.down = param((r, size_in), ("rank", axes[1]), scale=size_in**-0.5)
        self.core = param((shape.capacity, r, r), ("persona", "rank", None), "zeros")
        self.up = param((size_out, r), (axes[0], "rank"), scale=r**-0.5)

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """`[B, T, in]` and mixture `[B, T, P]` to the change of the projection's output, `[B, T, out]`."""
        return adapt([self], x, w)[0]


def adapt(adapters: Sequence[CoreAdapter], x: jax.Array, w: jax.Array) -> list[jax.Array]:
    """Applies N adapters of one input `[B, T, in]` at mixture `[B, T, P]`: a list of `[B, T, out]`.

    Together, because at a few rows each of these small products costs what its call costs.
    """
    downs = jnp.concatenate([a.down.get_value() for a in adapters]).astype(x.dtype)
    cores = jnp.stack([a.core.get_value() for a in adapters]).astype(x.dtype)
    inner = jnp.einsum("btd,rd->btr", x, downs).reshape(*x.shape[:-1], len(adapters), -1)
    turned = jnp.einsum("btnj,npij->btnpi", inner, cores)
    mixed = jnp.einsum("btnpi,btp->nbti", turned, w.astype(x.dtype))
    ups = [a.up.get_value().astype(x.dtype) for a in adapters]
    return [jnp.einsum("bti,fi->btf", m, up) for m, up in zip(mixed, ups, strict=True)]

"""Personas as mathematics: factored attention masks, gated injection, persona heads, core adapters.

Every function takes the mixture of each token, `w` f32 `[B, T, P]`: a row on the simplex where the persona
acts, a row of zeros where the token is the base model's. All terms are linear in `w` (the heads: a softmax
weighted by it), so a row of zeros adds exactly zero, and all of them are zero at initialisation.

All of a model's terms are one bank, in which a persona is a row of axis P. What personas own stands in one array
for all layers, axis L; the larger matrices that they share are an array a layer, which no product must slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from abi_jax.model.attention_terms import Bias
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.layers import projection, unstack
from abi_jax.model.lora import LowRank, make_lora, share
from abi_jax.model.matmul import combine, dot, expand, project
from abi_jax.model.weight import Tree, Weight, map_weights, param
from abi_jax.text.roles import NUM_ROLES

NUM_POSITION_FEATURES = 4

# projections that share an input, and so an adapter's `A`, in the order of `LayerCores.ups`
CORE_TARGETS = {"qkv": ("q", "k", "v"), "o": ("o",), "up": ("up",), "down": ("down",)}


def num_features(shape: PersonaShape) -> int:
    """Width `F` of the key features that all personas, layers and heads share."""
    return NUM_ROLES + NUM_POSITION_FEATURES + shape.mask_lexical


class KeyFeatures(nnx.Module):
    """`v(j)`: role one-hot, position, a small learned lexical feature."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        self.lexical = param((shape.mask_lexical, config.d_model), ("feature", "embed"), scale=config.d_model**-0.5)

    def __call__(self, embedded: jax.Array, roles: jax.Array, positions: jax.Array) -> jax.Array:
        """From base embeddings `[B, S, D]`, roles and positions `[B, S]` to f32 `[B, F, S]`, entries in [-1, 1]."""
        x = embedded.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        lexical = jnp.tanh(jnp.einsum("bsd,fd->bsf", x, self.lexical.get_value().astype(jnp.float32)))
        p = positions[..., None].astype(jnp.float32)
        place = jnp.concatenate([jnp.exp(-p / 16), jnp.exp(-p / 128), jnp.log1p(p) / 12, jnp.ones_like(p)], axis=-1)
        return jnp.concatenate([jax.nn.one_hot(roles, NUM_ROLES), place, lexical], axis=-1).swapaxes(1, 2)


class MaskQueries(nnx.Module):
    """`u_p(role(i))` of every layer: `[P, R, L, H, F]`, bounded by `c tanh(u / c)` before it is mixed.

    Without a bound, `u` is taken as it is (see `bank.bounded`).
    """

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        sizes = (shape.capacity, NUM_ROLES, config.num_layers, config.num_heads, num_features(shape))
        self.u = param(sizes, ("persona", "role", "layer", "heads", "feature"), "zeros")
        self.bound = shape.mask_bound

    def values(self) -> jax.Array:
        """The bounded `u`, f32 `[P, R, L, H, F]`."""
        u = self.u.get_value().astype(jnp.float32)
        return u if self.bound is None else bound(u, self.bound)


def bound(u: jax.Array, c: float) -> jax.Array:
    """`c tanh(u / c)`: the identity near 0, never beyond `c`."""
    return c * jnp.tanh(u / c)


def mix_queries(u: jax.Array, w: jax.Array, roles: jax.Array) -> jax.Array:
    """`u_w(role)` of queries with mixture `[B, T, P]` and roles `[B, T]`: u `[P, R, ...]` to `[B, T, ...]`."""
    of_role = w[..., None] * jax.nn.one_hot(roles, NUM_ROLES)[..., None, :]
    return jnp.einsum("btpr,pr...->bt...", of_role, u)


class Injection(nnx.Module):
    """`T = a T_base + (1 - a) T_persona`, computed as `T_base + (1 - a) D_w`: bitwise the base at `D_w = 0`."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        D, P, r = config.d_model, shape.capacity, shape.injection_rank
        self.embedding = param((P, D), ("persona", "embed"), "zeros")
        self.down = param((r, D), ("rank", "embed"), scale=D**-0.5)
        self.up = param((P, r, D), ("persona", "rank", "embed"), "zeros")
        self.gate = param((2 * D,), (None,), "zeros") if shape.gate else None
        self.gate_bias = param((1,), (None,), "zeros") if shape.gate else None

    def __call__(self, base: jax.Array, w: jax.Array, user: jax.Array | None = None) -> jax.Array:
        """`[B, T, D]` base embeddings and mixture `[B, T, P]` to the embeddings the first layer sees.

        user: `[B, D]`, each row's own embedding (see `model/users.py`).
        """
        w = w.astype(base.dtype)
        inner = project(base, self.down.get_value())
        shift = jnp.einsum("btp,pd->btd", w, self.embedding.get_value().astype(base.dtype))
        shift += jnp.einsum("btpr,prd->btd", w[..., None] * inner[..., None, :], self.up.get_value().astype(base.dtype))
        if user is not None:
            shift += user[:, None].astype(base.dtype)
        if self.gate is None or self.gate_bias is None:
            return base + shift
        on_base, on_persona = jnp.split(self.gate.get_value().astype(base.dtype), 2)
        gate_bias = self.gate_bias.get_value().astype(base.dtype)
        a = jax.nn.sigmoid(dot(base, on_base) + dot(base + shift, on_persona) + gate_bias)
        return base + (1 - a)[..., None] * shift


def head_scale(down: jax.Array) -> float:
    """`1 / sqrt(r)` of the heads `down`, `[P, r, D]`."""
    return float(down.shape[1] ** -0.5)


class PersonaHeads(nnx.Module):
    """`h' = h + sum_p pi_p B_p A_p h / sqrt(r)` with `pi_p` proportional to `w_p exp(r_p . h)`.

    The root keeps heads of any rank at the learning rate of the other terms (arXiv:2312.03732, theorem 3.2).
    With `head_bias` also `logits + sum_p w_p b_p`: which words a persona is fond of, whatever is being said. A change
    of h reaches them through the head alone, whose columns span few of the vocabulary's dimensions.
    """

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        D, P, r = config.d_model, shape.capacity, shape.head_rank
        self.route = param((P, D), ("persona", "embed"), "zeros")
        self.down = param((P, r, D), ("persona", "rank", "embed"), scale=D**-0.5)
        self.up = param((P, r, D), ("persona", "rank", "embed"), "zeros")
        self.bias = param((P, config.vocab_size), ("persona", "vocab"), "zeros") if shape.head_bias else None

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
        down = self.down.get_value()
        pi = (self.mixture(h, w) * head_scale(down)).astype(h.dtype)
        inner = project(h, down.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], *down.shape[:2]) * pi[..., None]
        return h + jnp.einsum("btpr,prd->btd", inner, self.up.get_value().astype(h.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCores:
    """One layer's core adapters on one input: down `[N r, in]`, core `[P, N, r, r]`, ups N times `[r, out]`.

    `mixed`: core is `[B, N, r, r]`, each row's own.
    """

    down: jax.Array
    core: jax.Array
    ups: tuple[jax.Array, ...]
    mixed: bool = field(default=False, metadata={"static": True})

    def __call__(self, x: jax.Array, w: jax.Array) -> list[jax.Array]:
        """`[B, T, in]` and mixture `[B, T, P]` to the changes of the N projections' outputs, `[B, T, out]` each.

        Every core turns its vector before they are mixed: the sum over personas alone is the same bits however
        many rows the bank has.
        """
        inner = project(x, self.down).reshape(*x.shape[:-1], len(self.ups), -1)
        core = self.core.astype(x.dtype)
        if self.mixed:
            turned = jnp.einsum("btnj,bnij->nbti", inner, core)
        else:
            each = jnp.einsum("btnj,pnij->btnpi", inner, core)
            turned = jnp.einsum("btnpi,btp->nbti", each, w.astype(x.dtype))
        return [expand(y, up) for y, up in zip(turned, self.ups, strict=True)]


class CoreAdapters(nnx.Module):
    """`dW_w x = B (sum_p w_p C_p) A x` for the N projections of one input, in every layer.

    `A` (down) and `B` (up) are shared, with one `r x r` core a persona, zero at first (but see `settle`).
    `name`: a key of `CORE_TARGETS`.
    """

    def __init__(self, config: ModelConfig, shape: PersonaShape, name: str) -> None:
        self.targets = CORE_TARGETS[name]
        L, N, P, r = config.num_layers, len(self.targets), shape.capacity, shape.core_rank
        found = {target: projection(config, target) for target in self.targets}
        size_in, _, (_, axis) = found[self.targets[0]]
        self.down = nnx.List([param((N * r, size_in), ("rank", axis), scale=size_in**-0.5) for _ in range(L)])
        self.core = param((P, L, N, r, r), ("persona", "layer", None, "rank", None), "zeros")
        self.up = nnx.Dict(
            {
                target: nnx.List([param((r, size), ("rank", axis), scale=r**-0.5) for _ in range(L)])
                for target, (_, size, (axis, _)) in found.items()
            }
        )

    def layers(self, w: jax.Array | None, user: jax.Array | None = None) -> list[LayerCores]:
        """Each layer's share; with the mixture `[B, P]` of whole rows, its cores are mixed.

        user: `[B, L, N, r, r]`, with a mixture: each row's own cores (see `model/users.py`).
        """
        ups = zip(*([up.get_value() for up in self.up[target]] for target in self.targets), strict=True)
        downs, core = (down.get_value() for down in self.down), self.core.get_value()
        mixed = core if w is None else jnp.einsum("bp,plnij->blnij", w, core)
        cores = unstack(mixed if user is None else mixed + user, axis=1)
        return [LayerCores(*parts, mixed=w is not None) for parts in zip(downs, cores, ups, strict=True)]


def settle(weights: Tree) -> Tree:
    """A bank's description whose cores start at random and whose `B` at zero, rather than the other way round.

    Either way the product is zero. Personas that are trained together with `A` and `B` learn faster from here: `B`
    takes the gradient whole from the first step on, as LoRA's does, where a core takes what random `A` and `B` let
    through. One that joins later starts with a core of zeros, between an `A` and a `B` that know their directions.
    """

    def of(path: str, weight: Weight) -> Weight:
        match path.split("."):
            case ["cores", _, "core"]:
                return replace(weight, init="normal", scale=weight.shape[-1] ** -0.5)
            case ["cores", _, "up", *_]:
                return replace(weight, init="zeros")
        return weight

    return map_weights(of, weights)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerTerms:
    """What the bank does in one layer: mask queries f32 `[P, R, H, F]`, and adapters by the input they share.

    `mixed`: u is `[B, T, H, F]`, each token's own.
    """

    u: jax.Array | None = None
    cores: Mapping[str, LayerCores] = field(default_factory=dict)
    lora: Mapping[str, list[LowRank]] = field(default_factory=dict)
    mixed: bool = field(default=False, metadata={"static": True})

    def bias(self, w: jax.Array | None, roles: jax.Array, features: jax.Array | None) -> Bias | None:
        """The bias of queries with mixture `[B, T, P]` and roles `[B, T]` on keys with features `[B, F, S]`."""
        if self.u is None or w is None or features is None:
            return None
        return Bias(self.u if self.mixed else mix_queries(self.u, w, roles), features)

    def adapt(self, name: str, outs: list[jax.Array], x: jax.Array, w: jax.Array | None) -> list[jax.Array]:
        """Projections `outs` of `x` `[B, T, in]`, changed by the adapters of that name, if there are any."""
        if w is not None and name in self.cores:
            outs = [y + change for y, change in zip(outs, self.cores[name](x, w), strict=True)]
        if w is not None and name in self.lora:
            outs = [y + adapter(x, w) for y, adapter in zip(outs, self.lora[name], strict=True)]
        return outs


class PersonaBank(nnx.Module):
    """All persona terms of one model; what `PersonaShape` leaves out is None, or missing from `cores`."""

    def __init__(self, config: ModelConfig, shape: PersonaShape) -> None:
        c = config
        self.num_layers = c.num_layers
        self.key_features = KeyFeatures(c, shape) if shape.mask else None
        self.masks = MaskQueries(c, shape) if shape.mask else None
        self.injection = Injection(c, shape) if shape.injection else None
        self.heads = PersonaHeads(c, shape) if shape.head_rank else None
        wanted = ("qkv", "o", "up", "down") if shape.core_mlp else ("qkv", "o")
        self.cores = nnx.Dict({name: CoreAdapters(c, shape, name) for name in wanted if shape.core_rank})
        self.lora = nnx.Dict(make_lora(c, shape) if shape.lora_rank else {})

    def layers(self, w: jax.Array, roles: jax.Array, users: Mapping[str, jax.Array] | None = None) -> list[LayerTerms]:
        """Each layer's share, for tokens of mixture `[B, T, P]` and roles `[B, T]`.

        Where a row is one token, all layers' terms are mixed here, at once: a decode step pays by the call.
        Longer rows mix in each layer, where remat can forget the result. users: each row's own cores, by the input
        they share, for rows of one token alone.
        """
        single = w.shape[1] == 1
        assert single or not users, "users' cores are mixed a token at a time"
        us: list[Any] = [None] * self.num_layers
        if self.masks is not None:
            u = self.masks.values()
            us = unstack(mix_queries(u, w, roles) if single else u, axis=2)
        own = users or {}
        cores = {name: of.layers(w[:, 0] if single else None, own.get(name)) for name, of in self.cores.items()}
        lora = {name: adapters.layers() for name, adapters in self.lora.items()}
        return [
            LayerTerms(u, {name: of[i] for name, of in cores.items()}, share(lora, i), single) for i, u in enumerate(us)
        ]

    def logits(self, logits: jax.Array, h: jax.Array, w: jax.Array) -> jax.Array:
        """The LM head's output `[B, T, V]` on hidden states `[B, T, D]`, with what the bank adds to it."""
        if self.heads is not None and self.heads.bias is not None:
            logits += combine(w.astype(logits.dtype), self.heads.bias.get_value())
        if "head" in self.lora:
            logits += self.lora["head"].layers()[0](h, w)
        return logits

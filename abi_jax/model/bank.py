"""The persona bank as a whole: attached to a base model, left out, or one mixture of it merged into the base.

A base model and its bank are one tree of parameters; no base array is copied or changed here unless a
mixture is merged into it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.persona import CORE_TARGETS, bound, head_scale, settle
from abi_jax.model.weight import Tree, describe, initialize, is_weight, path_name
from abi_jax.persona import SIMPLEX_TOLERANCE
from abi_jax.sharding.rules import AxisRules

BANK = "persona"  # where the bank is in a tree of parameters

# where a block keeps each of its projections
ROOMS = dict.fromkeys(("q", "k", "v", "o"), "attention") | dict.fromkeys(("gate", "up", "down"), "mlp")


@dataclass(frozen=True)
class Merged:
    """A base model that speaks as one mixture on every token, and the persona terms that it had to leave out.

    What is folded is exact up to rounding. `left_out` names, term by term, what no weight of the base model
    can express and is not zero for this mixture; empty, the merged model is the persona's.
    """

    config: ModelConfig
    params: Tree
    left_out: tuple[str, ...]


def add_personas(
    config: ModelConfig,
    params: Tree,
    shape: PersonaShape,
    key: jax.Array,
    *,
    settled: int = 0,
    dtype: DTypeLike = jnp.float32,
    rules: AxisRules | None = None,
) -> tuple[ModelConfig, Tree]:
    """Attaches a bank of `shape.capacity` personas to a base model: for every mixture still exactly that model.

    The base arrays are passed on as they are; the bank's are made by `key`, in `dtype` (masters in f32 cost
    little: a bank is small), on the base's mesh. settled: so many first rows are going to be trained together with what
    all share (see `persona.settle`). Raises `InputError` when there is a bank already.
    """
    if config.persona is not None:
        raise InputError(f"the model has a bank of {config.persona.capacity} personas already; expected a base model")
    with_bank = replace(config, persona=shape)
    _, weights = describe(lambda: Decoder(with_bank))
    described = settle(weights[BANK]) if settled else weights[BANK]
    bank = initialize({BANK: described}, key, dtype, _mesh(params), rules)
    if settled and "cores" in bank[BANK]:
        for group in bank[BANK]["cores"].values():
            group["core"] = first_rows(group["core"], settled)
    return with_bank, params | bank


@partial(jax.jit, static_argnums=1)
def first_rows(x: jax.Array, count: int) -> jax.Array:
    """`[P, ...]` with zeros in place of all but the first `count` rows."""
    return jnp.where(jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)) < count, x, 0)


def drop_personas(config: ModelConfig, params: Tree) -> tuple[ModelConfig, Tree]:
    """Returns the base model alone; its arrays are the same."""
    return replace(config, persona=None), {name: branch for name, branch in params.items() if name != BANK}


def bounded(config: ModelConfig, params: Tree) -> tuple[ModelConfig, Tree]:
    """The same model with the bound of its mask queries already applied, for programs that only read it."""
    shape = config.persona
    if shape is None or not shape.mask or shape.mask_bound is None:
        return config, params
    u = bound(params[BANK]["masks"]["u"].astype(jnp.float32), shape.mask_bound)
    bank = params[BANK] | {"masks": {"u": u}}
    return replace(config, persona=replace(shape, mask_bound=None)), params | {BANK: bank}


def merge_persona(config: ModelConfig, params: Tree, w: np.ndarray | jax.Array) -> Merged:
    """Folds the mixture `w` `[P]`, on the simplex or zero, into the base weights.

    Core adapters fold into their matrices, `W + B (sum_p w_p C_p) A`, and LoRA likewise. A persona head folds into
    the LM head, `W (I + B A)`, where its routing does not depend on the token (one persona, or equal routes); a
    tied head is untied for that. Injection whose gate is absent or constant folds into the embeddings, untying them as
    well. Attention masks, a gate that reads the token and a head that routes do not fold and are reported.
    The merged model acts on all tokens, the prompt's too; reading rules are not weights and are not merged.
    """
    shape = config.persona
    if shape is None:
        raise InputError("the model has no personas to merge; expected one with a persona bank")
    mixture = _mixture(w, shape.capacity)
    plain, base = drop_personas(config, params)
    out = _Fold(plain, shape, _flat(base), _flat(params[BANK]), mixture, [])
    if mixture.any():
        out.cores()
        out.lora()
        out.masks()
        out.injection()
        out.heads()
    return Merged(out.config, _nest(out.base), tuple(out.left_out))


@dataclass
class _Fold:
    """The state of one merge: what becomes of the base, and the bank, both by path."""

    config: ModelConfig
    shape: PersonaShape
    base: dict[str, jax.Array]
    bank: dict[str, jax.Array]
    w: np.ndarray
    left_out: list[str]

    def change(self, path: str, f: Callable[[jax.Array], jax.Array]) -> None:
        """Sets `path` to `f` of it, computed in f32, in its dtype and where it was."""
        old = self.base[path]
        new = f(old.astype(jnp.float32)).astype(old.dtype)
        self.base[path] = jax.device_put(new, old.sharding)

    def f32(self, path: str) -> jax.Array:
        return self.bank[path].astype(jnp.float32)

    def cores(self) -> None:
        for group in [path.split(".")[1] for path in self.bank if path.endswith(".core")]:
            mixed = np.einsum("p,plnij->lnij", self.w, self.f32(f"cores.{group}.core"))
            for layer, n in np.argwhere(mixed.any((2, 3))):
                name, r = CORE_TARGETS[group][n], mixed.shape[-1]
                path = f"layers.{layer}.{ROOMS[name]}.{name}.kernel"
                A = self.f32(f"cores.{group}.down.{layer}")[n * r : (n + 1) * r]
                B = self.f32(f"cores.{group}.up.{name}.{layer}")
                kernel = self.base[path]
                self.base[path] = jax.device_put(_add_core(kernel, B.T, mixed[layer, n], A), kernel.sharding)

    def lora(self) -> None:
        shape = self.shape
        for name in [path.split(".")[1] for path in self.bank if path.startswith("lora.") and path.endswith(".up")]:
            up, down = self.f32(f"lora.{name}.up"), self.f32(f"lora.{name}.down")
            if not self._acts(up):
                continue
            if name == "head":
                self._untie()
            mixed = up * (self.w * shape.lora_alpha / shape.lora_rank)[:, None, None, None]
            for layer in range(up.shape[1]):
                path = "head.kernel" if name == "head" else f"layers.{layer}.{ROOMS[name]}.{name}.kernel"
                A, B = (x[:, layer].reshape(-1, x.shape[-1]) for x in (down, mixed))
                self.change(path, partial(_add_product, B.T, A))

    def masks(self) -> None:
        if "masks.u" not in self.bank:
            return
        u = np.asarray(self.bank["masks.u"])[np.flatnonzero(self.w)]
        if used := int(u.any((0, 1, 3, 4)).sum()):
            self.left_out.append(f"attention masks of {used} of {u.shape[2]} layers: they depend on roles")

    def injection(self) -> None:
        """`x' = x + f (sum_p w_p B_p A x + e_p)` with `f = 1 - gate`: linear in x where the gate is constant."""
        if "injection.embedding" not in self.bank:
            return
        shift = jnp.einsum("p,pd->d", self.w, self.f32("injection.embedding"))
        up = jnp.einsum("p,prd->rd", self.w, self.f32("injection.up"))
        if not (shift.any() or up.any()):
            return
        factor = jnp.ones(())
        if "injection.gate" in self.bank:
            if self.bank["injection.gate"].any():
                self.left_out.append("token injection: its gate depends on the token")
                return
            factor = 1 - jax.nn.sigmoid(self.f32("injection.gate_bias")[0])
        if self.config.positions == "sinusoidal" and up.any():
            self.left_out.append("token injection: it also turns the sinusoidal positions, which are not weights")
            return
        down = self.f32("injection.down")
        self._untie()
        scale = self.config.embed_scale or 1.0

        def turn(E: jax.Array) -> jax.Array:
            return factor * (E @ down.T) @ up

        if "positions" in self.base:  # base embeddings are then token + position: the shift goes to one of them
            self.change("positions", lambda E: E + turn(E))
        self.change("embedding", lambda E: E + turn(E) + factor * shift / scale)

    def heads(self) -> None:
        if "heads.up" not in self.bank:
            return
        if "heads.bias" in self.bank and self._acts(self.f32("heads.bias")):
            self.left_out.append("persona heads: their bias over the vocabulary, which the base model has no place for")
        up, down = self.f32("heads.up"), self.f32("heads.down")
        if not self._acts(up):
            return
        routes = self.f32("heads.route")[np.flatnonzero(self.w)]
        if (routes != routes[:1]).any():
            self.left_out.append("persona heads: each token has its own mixture of them")
            return
        self._untie()
        mixed = up * (head_scale(down) * self.w)[:, None, None]
        self.change("head.kernel", lambda W: W + jnp.einsum("vpr,pre->ve", jnp.einsum("vd,prd->vpr", W, mixed), down))

    def _acts(self, x: jax.Array) -> bool:
        """True when the rows `[P, ...]` of the mixture's personas are not all zero."""
        return bool(x[np.flatnonzero(self.w)].any())

    def _untie(self) -> None:
        if self.config.tied_embeddings:
            self.config = replace(self.config, tied_embeddings=False)
            self.base["head.kernel"] = self.base["embedding"]


@jax.jit
def _add_core(kernel: jax.Array, up: jax.Array, core: jax.Array, down: jax.Array) -> jax.Array:
    return (kernel.astype(jnp.float32) + up @ core @ down).astype(kernel.dtype)


def _add_product(up: jax.Array, down: jax.Array, kernel: jax.Array) -> jax.Array:
    return kernel + up @ down


def _mixture(w: np.ndarray | jax.Array, capacity: int) -> np.ndarray:
    mixture = np.asarray(w, np.float32)
    total = float(mixture.sum())
    off = not np.isfinite(mixture).all() or (mixture < 0).any() or abs(total - 1) > SIMPLEX_TOLERANCE
    if mixture.shape != (capacity,) or (off and mixture.any()):
        raise InputError(
            f"mixture {mixture.tolist()} is not one for a bank of {capacity}; "
            f"expected {capacity} shares of at least 0 that sum to 1, or all 0 for the base model"
        )
    return mixture


def _mesh(params: Tree) -> Mesh | None:
    placed = next((x.sharding for x in jax.tree.leaves(params) if isinstance(x.sharding, NamedSharding)), None)
    return placed.mesh if placed is not None and isinstance(placed.mesh, Mesh) else None


def _flat(tree: Tree) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_weight)}


def _nest(flat: Mapping[str, Any]) -> Tree:
    out: Tree = {}
    for path, value in flat.items():
        *folders, leaf = path.split(".")
        at = out
        for name in folders:
            at = at.setdefault(name, {})
        at[leaf] = value
    return out

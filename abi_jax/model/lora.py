"""LoRA (arXiv:2106.09685), one adapter a persona: what the persona terms are compared with.

`W' x = W x + (alpha / r) sum_p w_p B_p A_p x` on every projection of every block and on the LM head. Like every
other term it is a row of the bank, zero at initialisation, and mixes by `w`; unlike core adapters it costs more
with every persona.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
from flax import nnx

from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.layers import projection, unstack
from abi_jax.model.matmul import expand, project
from abi_jax.model.weight import param

# projections by the name that a block gives their outputs
LORA_TARGETS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate": ("gate",), "up": ("up",), "down": ("down",)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The adapters of one projection: down `[P, r, in]`, up `[P, r, out]`."""

    down: jax.Array
    up: jax.Array
    scale: float = field(metadata={"static": True})

    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """`[B, T, in]` and mixture `[B, T, P]` to the change of the projection's output, `[B, T, out]`."""
        P, r, size = self.down.shape
        inner = project(x, self.down.reshape(P * r, size)).reshape(*x.shape[:-1], P, r)
        inner *= (self.scale * w[..., None]).astype(x.dtype)
        return expand(inner.reshape(*x.shape[:-1], P * r), self.up.reshape(P * r, -1))


class Lora(nnx.Module):
    """The adapters of one projection in every layer, or of the LM head."""

    def __init__(self, shape: PersonaShape, sizes: tuple[int, int, tuple[str, str]], num_layers: int) -> None:
        size_in, size_out, (axis_out, axis_in) = sizes
        P, r, L = shape.capacity, shape.lora_rank, num_layers
        self.down = param((P, L, r, size_in), ("persona", "layer", "rank", axis_in), scale=size_in**-0.5)
        self.up = param((P, L, r, size_out), ("persona", "layer", "rank", axis_out), "zeros")
        self.scale = shape.lora_alpha / r

    def layers(self) -> list[LowRank]:
        """Each layer's share."""
        down, up = self.down.get_value(), self.up.get_value()
        parts = zip(unstack(down, axis=1), unstack(up, axis=1), strict=True)
        return [LowRank(*part, self.scale) for part in parts]


def make_lora(config: ModelConfig, shape: PersonaShape) -> dict[str, Lora]:
    """The adapters of all projections of the blocks, and of the LM head, by name."""
    names = [name for name in sum(LORA_TARGETS.values(), ()) if name != "gate" or config.gated]
    made = {name: Lora(shape, projection(config, name), config.num_layers) for name in names}
    return made | {"head": Lora(shape, (config.d_model, config.vocab_size, ("vocab", "embed")), 1)}


def share(adapters: Mapping[str, list[LowRank]], layer: int) -> dict[str, list[LowRank]]:
    """One layer's adapters, by the name that its block gives the projections' outputs."""
    return {
        name: [adapters[target][layer] for target in targets]
        for name, targets in LORA_TARGETS.items()
        if targets[0] in adapters
    }

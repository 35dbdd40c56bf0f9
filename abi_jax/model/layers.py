"""The layers every decoder is made of: linear, normalisation, MLP, positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from abi_jax.model.config import Activation, ModelConfig, RopeScaling
from abi_jax.model.matmul import dot, project
from abi_jax.model.weight import param
from abi_jax.sharding.context import current_platform


def settle(x: jax.Array) -> jax.Array:
    """Returns `x`, rounded here to its dtype in every program.

    A compiler may carry a product on unrounded into the next sum, or move its constant factor; programs that
    share `x` would then differ in the last bit. It does neither across a clamp, which changes no finite value.
    """
    limit = jnp.finfo(x.dtype).max
    return jax.lax.clamp(-limit, jax.lax.optimization_barrier(x), limit)


def unstack(x: jax.Array, axis: int = 0) -> list[jax.Array]:
    """The slices along an axis. A split, because its gradient is one concatenation and not a sum of padded slices."""
    return [part.squeeze(axis) for part in jax.lax.split(x, (1,) * x.shape[axis], axis)]


class Linear(nnx.Module):
    """`y = W x + b` with `W` stored `[out, in]`."""

    def __init__(
        self, size_in: int, size_out: int, axes: tuple[str, str], *, bias: bool = False, scale: float = 0.02
    ) -> None:
        self.kernel = param((size_out, size_in), axes, scale=scale)
        self.bias = param((size_out,), axes[:1], "zeros") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in] -> [..., out]`, in the dtype of `x`."""
        y = project(x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias.get_value().astype(x.dtype)


def projection(config: ModelConfig, name: str) -> tuple[int, int, tuple[str, str]]:
    """Input size, output size and axes `[out, in]` of one of a block's projections: the arguments of `Linear`."""
    c = config
    sizes = {"embed": c.d_model, "heads": c.q_size, "kv_heads": c.kv_size, "mlp": c.d_ff}
    axes = {
        "q": ("heads", "embed"),
        "k": ("kv_heads", "embed"),
        "v": ("kv_heads", "embed"),
        "o": ("embed", "heads"),
        "gate": ("mlp", "embed"),
        "up": ("mlp", "embed"),
        "down": ("embed", "mlp"),
    }
    of_out, of_in = axes[name]
    return sizes[of_in], sizes[of_out], (of_out, of_in)


def _mean(x: jax.Array) -> jax.Array:
    """Mean over the last dimension, which is kept.

    A product and not a sum: XLA fuses a sum into whatever makes its terms and then adds them in another order,
    so that a persona term of exactly zero upstream would change the last bit.
    """
    share = jnp.full(x.shape[-1:], 1 / x.shape[-1], x.dtype)
    return dot(x, share, precision="highest")[..., None]


class RMSNorm(nnx.Module):
    """`x / rms(x) * (offset + weight)` (arXiv:1910.07467), computed in f32; Gemma stores the weight minus one."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        self.weight = param((size,), ("norm",), "zeros" if offset else "ones")
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension; keeps the dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(_mean(y * y) + self.eps)
        weight = self.weight.get_value().astype(jnp.float32)
        if self.offset:
            return (y * (self.offset + weight)).astype(x.dtype)
        return (weight * y.astype(x.dtype)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with weight and bias (arXiv:1607.06450), computed in f32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = param((size,), ("norm",), "ones")
        self.bias = param((size,), ("norm",), "zeros")
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension; keeps the dtype."""
        y = x.astype(jnp.float32)
        y = y - _mean(y)
        y = y * jax.lax.rsqrt(_mean(y * y) + self.eps)
        return (y * self.weight.get_value() + self.bias.get_value()).astype(x.dtype)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """Returns the normalisation of width `d_model` that the configuration asks for."""
    if config.norm == "layer":
        return LayerNorm(config.d_model, config.norm_eps)
    return RMSNorm(config.d_model, config.norm_eps, config.norm_offset)


def activate(x: jax.Array, kind: Activation) -> jax.Array:
    """The MLP's nonlinearity."""
    match kind:
        case "silu":
            return jax.nn.silu(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu(x)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling, length: int) -> tuple[jax.Array, float]:
    """Returns the `[head_dim / 2]` f32 angular frequencies and the factor on cosine and sine.

    `length` matters to `dynamic` scaling alone: the context the frequencies are to serve.
    """
    if scaling.kind == "dynamic" and length > scaling.original_max_length:
        ratio = scaling.factor * length / scaling.original_max_length - (scaling.factor - 1)
        theta = theta * ratio ** (head_dim / (head_dim - 2))
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    freqs = 1.0 / (theta**exponents)
    if scaling.kind == "linear":
        return freqs / scaling.factor, 1.0
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / freqs
        low = scaling.original_max_length / scaling.low_freq_factor
        high = scaling.original_max_length / scaling.high_freq_factor
        smooth = (scaling.original_max_length / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        mixed = (1 - smooth) * freqs / scaling.factor + smooth * freqs
        return jnp.where(wavelength > low, freqs / scaling.factor, jnp.where(wavelength < high, freqs, mixed)), 1.0
    if scaling.kind == "yarn":
        return _yarn(head_dim, theta, freqs, scaling)
    return freqs, 1.0


def _yarn(head_dim: int, theta: float, freqs: jax.Array, scaling: RopeScaling) -> tuple[jax.Array, float]:
    def dimension(rotations: float) -> float:
        return head_dim * math.log(scaling.original_max_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = jnp.clip((jnp.arange(head_dim // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return freqs / scaling.factor * ramp + freqs * (1 - ramp), factor


def rope_angles(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, f32 `[B, T, 1, head_dim / 2]`, of positions `[B, T]`."""
    freqs, factor = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, config.max_length)
    angles = positions[..., None, None].astype(jnp.float32) * freqs
    return _once(jnp.cos(angles) * factor), _once(jnp.sin(angles) * factor)


def _once(x: jax.Array) -> jax.Array:
    """Returns `x`, computed once: XLA's CPU backend would compute it anew, element by element, in every fusion.

    Nothing fuses into a product's operand, and the product with the identity is exact.
    """
    if current_platform() != "cpu":
        return x
    return jnp.einsum("...d,de->...e", x, jnp.eye(x.shape[-1], dtype=x.dtype), precision="highest")


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates `[B, T, H, d]` by RoPE (arXiv:2104.09864), halves paired as Hugging Face pairs them."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def sinusoids(length: int, size: int) -> np.ndarray:
    """Sinusoidal position encodings (arXiv:1706.03762, section 3.5), f32 `[length, size]`.

    Made on the host: a constant is the same bits in every program, a compiled sine is not.
    """
    half = (size + 1) // 2
    angles = np.arange(length)[:, None] * np.exp(-math.log(10_000.0) * np.arange(half) * 2 / size)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, 2 * half)
    return table[:, :size].astype(np.float32)

"""The decoder's configuration: every shape it has, and what those shapes cost."""

from dataclasses import dataclass, field
from typing import Literal

from abi_jax.errors import InputError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Positions = Literal["rope", "learned", "sinusoidal", "none"]
Norm = Literal["rms", "layer"]


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE frequencies are stretched beyond the context a model was trained on.

    `linear` divides every frequency by `factor`; `dynamic` raises the base with the length (NTK);
    `llama3` and `yarn` stretch low frequencies and keep high ones (Llama 3.1; arXiv:2309.00071).
    """

    kind: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_max_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class PersonaShape:
    """Sizes of the persona terms. `mask` or `injection` false, a rank of 0 leave that term out.

    `capacity` rows are allotted, whether used or not, so that adding a persona compiles nothing. `mask_bound`:
    see `model.persona.MaskQueries`. `head_bias`: where there are heads, a bias over the vocabulary for every persona.
    `lora_rank`, scaled by `lora_alpha`: LoRA for every persona, the usual baseline (see `model.lora`).
    `response_only` says how the bank was trained, and so how it is served; a run sets it from `data.response_only`.
    """

    capacity: int = 8
    mask: bool = True
    mask_lexical: int = 6
    mask_bound: float | None = 8.0
    injection: bool = True
    injection_rank: int = 4
    gate: bool = True
    head_rank: int = 8
    head_bias: bool = True
    core_rank: int = 8
    core_mlp: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    response_only: bool = True

    def __post_init__(self) -> None:
        for name in ("capacity", "mask_lexical", "injection_rank"):
            if getattr(self, name) < 1:
                raise InputError(f"persona.{name} = {getattr(self, name)}; expected at least 1")
        for name in ("head_rank", "core_rank", "lora_rank"):
            if getattr(self, name) < 0:
                raise InputError(f"persona.{name} = {getattr(self, name)}; expected 0 (no such term) or more")
        if self.mask_bound is not None and not self.mask_bound > 0:
            raise InputError(f"persona.mask_bound = {self.mask_bound}; expected a number above 0, or null for no bound")
        if not self.lora_alpha > 0:
            raise InputError(f"persona.lora_alpha = {self.lora_alpha}; expected a number above 0")
        if not (self.mask or self.injection or self.head_rank or self.core_rank or self.lora_rank):
            raise InputError(
                "persona: mask, injection, head_rank, core_rank and lora_rank are all off; expected at least one"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer of the GPT-2, Llama, Mistral, Qwen or Gemma 2 family.

    `sliding_window` applies to the layers that `window_pattern`, repeated over the depth, marks;
    `query_scale` and `embed_scale` of None mean `head_dim ** -0.5` and 1.
    """

    vocab_size: int = 4096
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 32
    d_ff: int = 704
    max_length: int = 1024
    architecture: str = "llama"

    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    post_norms: bool = False

    activation: Activation = "silu"
    gated: bool = True

    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    window_pattern: tuple[bool, ...] = (True,)
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    query_scale: float | None = None
    embed_scale: float | None = None
    tied_embeddings: bool = True

    persona: PersonaShape | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise InputError(f"head_dim={self.head_dim} must be even for RoPE")
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """Factor on q.k before the softmax."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def window(self, layer: int) -> int | None:
        """Sliding window of one layer, or None where it sees everything."""
        return self.sliding_window if self.window_pattern[layer % len(self.window_pattern)] else None

    def matmul_params(self) -> int:
        """Weights that multiply every token: all matrices, the LM head, no embedding look-up, no personas."""
        attention = self.d_model * (2 * self.q_size + 2 * self.kv_size)
        mlp = self.d_model * self.d_ff * (3 if self.gated else 2)
        return self.num_layers * (attention + mlp) + self.vocab_size * self.d_model

    def flops_per_token(self, length: int, training: bool = False) -> int:
        """Floating-point operations per token at context `length`, causal attention counted at its mean.

        Two per weight and per attended key (PaLM, arXiv:2204.02311, appendix B); three times that with the
        backward pass. Recomputation by remat is not counted.
        """
        windows = [min(self.window(i) or length, length) for i in range(self.num_layers)]
        attended = sum(w - w * w / (2 * length) for w in windows)
        forward = 2 * self.matmul_params() + int(4 * attended * self.q_size)
        return forward * (3 if training else 1)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of key-value cache that one token occupies."""
        return 2 * self.num_layers * self.kv_size * bytes_per_value

"""Hugging Face `config.json` to `ModelConfig` and back.

Both styles of key are read: `rope_theta` and `rope_scaling` (transformers 4), `rope_parameters` and
`layer_types` (transformers 5). An option that would change the computation and that the decoder does not
have is refused by name: a model that loads is the model that was published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.config import Activation, ModelConfig
from abi_jax.model.hf_fields import Fields
from abi_jax.model.hf_rope import read_rope, write_rope
from abi_jax.model.hf_windows import read_windows, shortest

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Family:
    """What a `model_type` implies where its `config.json` is silent: the defaults of transformers' class for it."""

    model_class: str
    tied: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int = 32768
    window: int | None = None


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", tied=True, max_length=1024),
    "llama": Family("LlamaForCausalLM", max_length=2048),
    "mistral": Family("MistralForCausalLM", kv_heads=8, max_length=131072, window=4096),
    "qwen2": Family("Qwen2ForCausalLM", kv_heads=32, window=4096),
    "qwen3": Family("Qwen3ForCausalLM", kv_heads=32, head_dim=128, window=4096),
    "gemma2": Family("Gemma2ForCausalLM", tied=True, kv_heads=4, head_dim=256, max_length=8192, window=4096),
}

# options that change the computation, with the values under which they do not
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "use_mrope": (None, False),
    "use_bidirectional_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
}


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Returns the configuration of the decoder that a `config.json` describes, without personas.

    Raises `InputError` naming the key, its value and what was expected for an unknown `model_type`, a missing
    or ill-typed key, and every option the decoder does not have.
    """
    f = Fields(config)
    kind = f.text("model_type")
    if kind not in FAMILIES:
        raise InputError(f"model_type is {kind!r}; supported are {', '.join(FAMILIES)}")
    for key, harmless in _REFUSED.items():
        if config.get(key) not in harmless:
            raise InputError(f"{key} is {config[key]!r}, which {kind} here does not support; expected {harmless[-1]!r}")
    custom = config.get("auto_map")
    if isinstance(custom, Mapping) and "AutoModelForCausalLM" in custom:
        raise InputError(f"auto_map names model code of its own, {custom['AutoModelForCausalLM']!r}; expected none")
    found = _gpt2(f) if kind == "gpt2" else _llama_like(f, kind, FAMILIES[kind])
    return canonical(found)


def stored_dtype(config: Mapping[str, Any]) -> np.dtype[Any] | None:
    """Returns the dtype a `config.json` records (`dtype`, or `torch_dtype` before transformers 4.56), or None."""
    name = config.get("dtype") or config.get("torch_dtype")
    if name is None or name == "auto":
        return None
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


def to_hf(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Returns the `config.json` of `config.architecture`, in keys that transformers 4 and 5 both read.

    Persona terms are left out: they have no equivalent. Raises `InputError` naming the fields that this
    architecture cannot express: what is written reads back as the same configuration, or is not written.
    """
    kind = config.architecture
    if kind not in FAMILIES:
        raise InputError(f"architecture is {kind!r}; supported by Hugging Face export are {', '.join(FAMILIES)}")
    wanted = canonical(replace(config, persona=None))
    written = (_to_gpt2 if kind == "gpt2" else _to_llama_like)(wanted)
    out = {
        "architectures": [FAMILIES[kind].model_class],
        "model_type": kind,
        **written,
        "torch_dtype": jnp.dtype(dtype).name,
        "use_cache": True,
    }
    back = from_hf(out)
    differ = [x.name for x in fields(ModelConfig) if getattr(back, x.name) != getattr(wanted, x.name)]
    if differ:
        raise InputError(
            f"architecture {kind!r} of Hugging Face cannot express "
            + ", ".join(f"{n}={getattr(wanted, n)!r} (it has {getattr(back, n)!r})" for n in differ)
        )
    return out


def canonical(config: ModelConfig) -> ModelConfig:
    """Returns the one spelling of equal configurations: shortest window pattern, None where a value is the default."""
    c = config
    windows = [c.window(i) is not None for i in range(c.num_layers)]
    sliding = any(windows)
    scale = None if c.query_scale == c.head_dim**-0.5 else c.query_scale
    return replace(
        c,
        sliding_window=c.sliding_window if sliding else None,
        window_pattern=shortest(windows) if sliding else (True,),
        query_scale=scale,
        embed_scale=None if c.embed_scale == 1.0 else c.embed_scale,
    )


def _activation(f: Fields, key: str, default: str) -> Activation:
    name = f.text(key, default)
    if name not in ACTIVATIONS:
        raise InputError(f"{key} is {name!r}; supported activations are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _gpt2(f: Fields) -> ModelConfig:
    D, heads = f.whole("n_embd"), f.whole("n_head")
    if D % heads:
        raise InputError(f"n_embd is {D}, not a multiple of n_head {heads}")
    return ModelConfig(
        architecture="gpt2",
        vocab_size=f.whole("vocab_size"),
        d_model=D,
        num_layers=f.whole("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=D // heads,
        d_ff=f.whole("n_inner", 4 * D),
        max_length=f.whole("n_positions", FAMILIES["gpt2"].max_length),
        norm="layer",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        activation=_activation(f, "activation_function", "gelu_new"),
        gated=False,
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_embeddings=f.flag("tie_word_embeddings", True),
    )


def _llama_like(f: Fields, kind: str, family: Family) -> ModelConfig:
    D, heads, layers = f.whole("hidden_size"), f.whole("num_attention_heads"), f.whole("num_hidden_layers")
    # null means the number of query heads (or the width of one); absent means the class's default
    head_dim = f.whole("head_dim", 0 if "head_dim" in f else family.head_dim or 0)
    if not head_dim and D % heads:
        raise InputError(f"hidden_size is {D}, not a multiple of num_attention_heads {heads}, and there is no head_dim")
    kv_heads = f.whole("num_key_value_heads", heads if "num_key_value_heads" in f else family.kv_heads or heads)
    max_length = f.whole("max_position_embeddings", family.max_length)
    theta, scaling = read_rope(f, max_length)
    gemma = kind == "gemma2"
    attention_bias = f.flag("attention_bias", False) if kind in ("llama", "qwen3", "gemma2") else False
    window, pattern = read_windows(f, kind, family.window, layers)
    return ModelConfig(
        architecture=kind,
        vocab_size=f.whole("vocab_size"),
        d_model=D,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim or D // heads,
        d_ff=f.whole("intermediate_size"),
        max_length=max_length,
        norm="rms",
        norm_eps=f.number("rms_norm_eps", 1e-6),
        norm_offset=1.0 if gemma else 0.0,
        post_norms=gemma,
        # Gemma's files also carry a `hidden_act`, which transformers does not read
        activation=_activation(f, "hidden_activation", "gelu_pytorch_tanh")
        if gemma
        else _activation(f, "hidden_act", "silu"),
        gated=True,
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=attention_bias or kind == "qwen2",
        out_bias=attention_bias,
        mlp_bias=f.flag("mlp_bias", False) if kind == "llama" else False,
        qk_norm=kind == "qwen3",
        sliding_window=window,
        window_pattern=pattern,
        attention_softcap=f.maybe_number("attn_logit_softcapping", 50.0) if gemma else None,
        logit_softcap=f.maybe_number("final_logit_softcapping", 30.0) if gemma else None,
        query_scale=f.number("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
        embed_scale=D**0.5 if gemma else None,
        tied_embeddings=f.flag("tie_word_embeddings", family.tied),
    )


def _to_gpt2(c: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": None if c.d_ff == 4 * c.d_model else c.d_ff,
        "n_positions": c.max_length,
        "n_ctx": c.max_length,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(c.activation, c.activation),
        "tie_word_embeddings": c.tied_embeddings,
    }


def _to_llama_like(c: ModelConfig) -> dict[str, Any]:
    kind = c.architecture
    activation = {"gelu_tanh": "gelu_pytorch_tanh"}.get(c.activation, c.activation)
    theta, scaling = write_rope(c)
    out: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": activation,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_dropout": 0.0,
        "tie_word_embeddings": c.tied_embeddings,
    }
    if kind in ("llama", "qwen3", "gemma2"):
        out["attention_bias"] = c.out_bias
    if kind == "llama":
        out["mlp_bias"] = c.mlp_bias
    if kind in ("mistral", "gemma2"):
        out["sliding_window"] = c.sliding_window
    marked = [c.window(i) is not None for i in range(c.num_layers)]
    if kind in ("qwen2", "qwen3"):
        first = marked.index(True) if any(marked) else c.num_layers
        out |= {"use_sliding_window": any(marked), "sliding_window": c.sliding_window, "max_window_layers": first}
    if kind in ("qwen2", "qwen3", "gemma2"):
        out["layer_types"] = ["sliding_attention" if m else "full_attention" for m in marked]
    if kind == "gemma2":
        # transformers wants whole numbers here; what rounding would change is caught by reading back
        out |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": round(c.scale**-2),
            "attn_logit_softcapping": c.attention_softcap,
            "final_logit_softcapping": c.logit_softcap,
        }
    return out

"""Our weights and the tensors of a Hugging Face checkpoint: which is where, and how it lies there.

    ours                          Llama, Mistral, Qwen, Gemma 2              GPT-2
    embedding                     model.embed_tokens.weight                  transformer.wte.weight
    layers.3.attention.q.kernel   model.layers.3.self_attn.q_proj.weight     transformer.h.3.attn.c_attn.weight[:, :D].T
    layers.3.mlp.up.kernel        model.layers.3.mlp.up_proj.weight          transformer.h.3.mlp.c_fc.weight.T
    norm.weight                   model.norm.weight                          transformer.ln_f.weight
    head.kernel                   lm_head.weight                             lm_head.weight

GPT-2 stores its matrices `[in, out]` and q, k and v side by side in one tensor, so its weights are regions,
transposed. A region of a region is a region: a shard of any weight is still read alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from abi_jax.model.config import ModelConfig
from abi_jax.model.safetensors_io import Index, Transform

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """Where one weight is stored: `tensor[transform.part]`, transposed if so, of a tensor of `shape`."""

    name: str
    shape: tuple[int, ...]
    transform: Transform = Transform()


_LLAMA = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "layers": "layers",
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
# Gemma 2 keeps Llama's name for a norm in another place: after attention, not before the MLP
_GEMMA2 = _LLAMA | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GPT2 = {
    "embedding": "wte",
    "positions": "wpe",
    "norm": "ln_f",
    "layers": "h",
    "attention_norm": "ln_1",
    "attention.q": "attn.c_attn",
    "attention.k": "attn.c_attn",
    "attention.v": "attn.c_attn",
    "attention.o": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_TABLES: Mapping[str, Mapping[str, str]] = {"gpt2": _GPT2, "gemma2": _GEMMA2}

# buffers that old releases of transformers saved beside the weights; they are computed, not learned
_BUFFERS: Mapping[str, re.Pattern[str]] = {"gpt2": re.compile(r"(.*\.)?h\.\d+\.attn\.(bias|masked_bias)")}
_ROTARY = re.compile(r".*rotary_emb\.inv_freq")


def prefix(architecture: str) -> str:
    """Returns what every name but the LM head's begins with; base-model checkpoints leave it out."""
    return "transformer." if architecture == "gpt2" else "model."


def source(config: ModelConfig, path: str, shape: tuple[int, ...]) -> Source:
    """Returns where the weight at `path` (such as `layers.0.attention.q.kernel`) of `shape` is stored."""
    if path == "head.kernel":
        return Source(HEAD, shape)
    table = _TABLES.get(config.architecture, _LLAMA)
    start = prefix(config.architecture)
    if path in ("embedding", "positions"):
        return Source(f"{start}{table[path]}.weight", shape)
    module, leaf = path.rsplit(".", 1)
    if module.startswith("layers."):
        _, number, module = module.split(".", 2)
        start += f"{table['layers']}.{number}."
    name = f"{start}{table[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    if config.architecture != "gpt2" or "norm" in module:
        return Source(name, shape)
    part: Index = ()
    stored = tuple(reversed(shape))
    if module in ("attention.q", "attention.k", "attention.v"):
        at = "qkv".index(module[-1]) * config.d_model
        columns = slice(at, at + config.d_model)
        part = (columns,) if leaf == "bias" else (slice(None), columns)
        stored = (*stored[:-1], 3 * config.d_model)
    return Source(name, stored, Transform(part=part, transpose=leaf == "kernel"))


def is_buffer(architecture: str, name: str) -> bool:
    """True for a stored tensor that holds nothing learned: rotary frequencies, GPT-2's causal mask."""
    known = _BUFFERS.get(architecture)
    return bool(_ROTARY.fullmatch(name) or (known and known.fullmatch(name)))

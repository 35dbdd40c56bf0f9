"""Model shapes of the CPU benchmarks, and random-weight checkpoints of them.

A shape is the keyword arguments of a transformers `LlamaConfig`. Every engine measured reads
the one Hugging Face checkpoint that `write_checkpoint` writes, so that they run the same model.
"""

from math import sqrt
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_COMMON = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    # without an end token every engine decodes exactly as many steps as it was asked for
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

SHAPES: dict[str, dict[str, Any]] = {
    # 33.7M parameters, 8.4M of them the tied embedding
    "34m": _COMMON
    | {
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    # 109.5M parameters, 24.6M of them the tied embedding
    "110m": _COMMON
    | {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
    },
}


def write_checkpoint(shape: str, folder: str | Path, seed: int = 0) -> Path:
    """Writes config.json and model.safetensors (float32) of `SHAPES[shape]`; returns the folder.

    The usual initialisation (standard deviation 0.02) is useless for comparing ids: the
    residual stream stays the token's embedding, and with tied output the model repeats its
    last token whatever attention does. Here matrices keep the scale of their input, queries
    and keys are larger so that attention picks positions, and the embedding is small, so that
    the next token depends on every layer and position. Norm weights differ from one, so that
    an engine that drops or swaps one is seen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).to(torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:
                    weight.normal_(1.0, 0.1)
                elif name.endswith("embed_tokens.weight"):
                    weight.normal_(0.0, 2.0 / sqrt(weight.shape[1]))
                else:
                    gain = 1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
                    weight.normal_(0.0, gain / sqrt(weight.shape[1]))
    folder = Path(folder)
    model.save_pretrained(folder)
    return folder

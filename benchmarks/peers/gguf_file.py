"""Hugging Face Llama checkpoints as llama.cpp reads them."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file


def write_gguf(hf_folder: str | Path, path: str | Path) -> Path:
    """Converts the float32 Llama checkpoint in `hf_folder` to a float32 GGUF file at `path`.

    Without a tokenizer in the folder the file has a vocabulary size alone: ids go in and come out.
    """
    folder, path = Path(hf_folder), Path(path)
    config = json.loads((folder / "config.json").read_text())
    layers, heads, kv_heads = (
        config[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if (folder / "tokenizer.json").is_file():
        _write_tokenizer(writer, folder, config["vocab_size"])
    else:
        writer.add_tokenizer_model("none")

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            weight = _interleave(weight, heads)
        elif name.endswith("k_proj.weight"):
            weight = _interleave(weight, kv_heads)
        # a tied checkpoint has no output matrix: llama.cpp then uses the embedding
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise ValueError(f"{folder}: tensor {name!r} is not one of a Llama model's")
        writer.add_tensor(target, np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Writes a tokenizer that `abi_jax.text.train_tokenizer` made, filled up to the model's vocabulary."""
    made = json.loads((folder / "tokenizer.json").read_text())
    by_id = {token_id: token for token, token_id in made["model"]["vocab"].items()}
    control = {added["id"] for added in made["added_tokens"]}
    by_id |= {added["id"]: added["content"] for added in made["added_tokens"]}
    kind = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # splits text by the same pattern
    writer.add_token_list([by_id.get(i, f"[unused {i}]") for i in range(vocab_size)])
    writer.add_token_types(
        [kind.CONTROL if i in control else kind.NORMAL if i in by_id else kind.UNUSED for i in range(vocab_size)]
    )
    writer.add_token_merges([" ".join(pair) for pair in made["model"]["merges"]])
    texts = json.loads((folder / "tokenizer_config.json").read_text())
    ids = {text: i for i, text in by_id.items()}
    writer.add_bos_token_id(ids[texts["bos_token"]])
    writer.add_eos_token_id(ids[texts["eos_token"]])
    writer.add_add_bos_token(False)


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection for llama.cpp's rotary embedding.

    transformers rotates row i of a head with row i + half; llama.cpp's "llama" architecture
    rotates neighbouring rows.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)

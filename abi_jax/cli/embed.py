"""Embed sentences with a BERT-family encoder (MiniLM, BGE, E5) from a Hugging Face directory.

abi embed ~/models/all-MiniLM-L6-v2 "how do I reset the cluster" --json
abi embed ~/models/all-MiniLM-L6-v2 --file notes.txt --out notes.npy
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "sentences -> vectors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("encoder", type=Path, help="directory with config.json, safetensors and tokenizer.json")
    parser.add_argument("text", nargs="*", help="sentences")
    parser.add_argument("--file", type=Path, help="text file, one sentence a line")
    parser.add_argument("--out", type=Path, help="write the vectors as .npy, float32 [N, D]")
    parser.add_argument("--prompt", help="what the text is for, where the encoder distinguishes: query or passage")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="sentences at a time")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Embeds and returns the vectors, or where they were written."""
    import numpy as np

    from abi_jax.model.encoder import load_encoder

    texts = list(options.text)
    if options.file is not None:
        try:
            texts += options.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--file {str(options.file)!r} cannot be read: {error}") from None
    if not texts:
        raise InputError("nothing to embed; give sentences, or --file with one a line")
    if options.out is not None and not options.out.parent.is_dir():
        raise InputError(f"--out {str(options.out)!r}: the directory {str(options.out.parent)!r} does not exist")
    if options.out is not None and options.out.is_dir():
        raise InputError(f"--out {str(options.out)!r} is a directory; expected a file, e.g. {options.out / 'out.npy'}")
    encoder = load_encoder(options.encoder)
    vectors = encoder.encode(texts, batch_size=options.batch_size, prompt=options.prompt)
    summary: dict[str, Any] = {"count": len(texts), "dimension": int(vectors.shape[1])}
    if options.out is not None:
        partial = options.out.with_name(options.out.name + ".partial")
        with partial.open("wb") as file:
            np.save(file, vectors)
        partial.replace(options.out)
        summary["out"] = str(options.out)
        if not options.json:
            print(f"{options.out}: {len(texts)} x {vectors.shape[1]}")
        return summary
    if not options.json:
        for vector in vectors:
            print(" ".join(f"{x:.6f}" for x in vector))
    return {**summary, "vectors": vectors.tolist()}

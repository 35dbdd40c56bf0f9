"""Answer one question.

  abi generate runs/personas "My build fails and I am stuck" --persona abbey=0.6,aviva=0.4 \\
      --max-tokens 64 --temperature 0 --seed 7
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import add_sampling, parse_mesh, read_lines, sampling

HELP = "answer one question in a persona's voice, or in a mixture of voices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("prompt", help="the question; - reads it from standard input")
    add_sampling(parser)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Streams the answer, or returns it whole for `--json`."""
    from abi_jax.persona import parse_mixture
    from abi_jax.serve.local import LocalEngine, Request

    engine = LocalEngine.open(options.model, mesh=parse_mesh(options.mesh), dtype=options.dtype)
    question = "".join(read_lines(sys.stdin)) if options.prompt == "-" else options.prompt
    mixture = parse_mixture(options.persona, engine.names)
    request = Request([{"role": "user", "content": question}], mixture, **sampling(options))
    if options.json:
        answer = engine.answer([request])[0]
        return {
            "text": answer.text,
            "finish": answer.finish,
            "mixture": mixture,
            "prompt_tokens": answer.prompt_tokens,
            "tokens": answer.tokens,
        }
    for piece in engine.stream(request):
        print(piece, end="", flush=True)
    print()
    return None

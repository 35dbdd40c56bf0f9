"""Talk with a model in the terminal.

Each turn may go to another voice: `/persona aviva`, `/persona abbey=0.5,aviva=0.5`, `/persona base`.
`/memory TEXT` remembers a text, `/reset` starts afresh, `/quit` or Ctrl-D ends.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import add_sampling, parse_mesh, read_lines, sampling
from abi_jax.errors import InputError

HELP = "talk in the terminal, switching personas as you go"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")
    add_sampling(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads turns until end of file; returns the conversation."""
    from abi_jax.persona import parse_mixture
    from abi_jax.serve.local import LocalEngine, Request

    engine = LocalEngine.open(options.model, mesh=parse_mesh(options.mesh), dtype=options.dtype)
    settings = sampling(options)
    memory = list(settings.pop("memory"))
    mixture = parse_mixture(options.persona or (engine.names[0] if engine.names else ""), engine.names)
    messages: list[dict[str, str]] = []
    out = sys.stderr if options.json else sys.stdout
    print(f"personas: {', '.join(engine.names) or 'none (base model)'}; /persona, /memory, /reset, /quit", file=out)
    lines = read_lines(sys.stdin)
    while True:
        print(f"\n[{'+'.join(mixture) or 'base'}] you> ", end="", file=out, flush=True)
        line = next(lines, "")
        command, _, argument = line.strip().partition(" ")
        if not line or command == "/quit":
            print(file=out)
            return {"messages": messages}
        if command == "/persona":
            try:
                mixture = parse_mixture(argument, engine.names)
            except InputError as error:
                print(error, file=out)
        elif command == "/memory":
            memory.append(argument)
        elif command == "/reset":
            messages, memory = [], []
        elif command.startswith("/") and command[1:].isalpha():
            print(f"unknown command {command}; known: /persona, /memory, /reset, /quit", file=out)
        elif command:
            messages.append({"role": "user", "content": line.strip()})
            text = ""
            try:
                for piece in engine.stream(Request(messages, mixture, tuple(memory), **settings)):
                    text += piece
                    print(piece, end="", file=out, flush=True)
            except InputError as error:
                print(f"{error}; /reset starts afresh", file=out)
                messages.pop()
                continue
            print(file=out)
            messages.append({"role": "assistant", "content": text})

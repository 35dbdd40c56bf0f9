"""Regenerate an answer from its receipt and say whether it is bit-identical.

A receipt comes with an answer of `abi serve` that was asked for one: {"abi": {"receipt": true}} in the request. The
file is the receipt, or the whole answer. Exit status 1 where the answer is another, or the receipt was changed.

  abi replay receipt.json
  abi replay receipt.json --model runs/personas --store runs/memory.wdbx
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import add_mesh, parse_mesh
from abi_jax.errors import InputError

HELP = "regenerate an answer from its receipt, and say whether it is bit-identical"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("receipt", type=Path, help="a receipt, or an answer of the server with one")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model directory (default: the one of its name in . or runs)"
    )
    parser.add_argument("--store", metavar="PATH", help="WDBX store: check what was remembered against it, too")
    parser.add_argument("--users", type=Path, metavar="DIR", help="folder of users' adaptations, where one spoke")
    add_mesh(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Replays, prints what was found, and returns it."""
    from abi_jax import wdbx
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.serve.receipt import read
    from abi_jax.serve.replay import Replayer
    from abi_jax.serve.users import UserFolder

    try:
        value = json.loads(options.receipt.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{options.receipt}: {error.strerror}; expected a receipt") from None
    except (ValueError, RecursionError):
        raise InputError(f"{options.receipt} is not JSON; expected a receipt") from None
    receipt = read(value, str(options.receipt))
    directory = ModelDirectory.open(options.model or _find(str(receipt.model["name"])))
    with nullcontext() if options.store is None else wdbx.open(options.store, mode="r") as store:
        users = None if options.users is None else UserFolder(options.users, directory.config)
        found = Replayer(directory, parse_mesh(options.mesh), store, users).replay(receipt)
    if not options.json:
        for line in found.wrong:
            print(f"wrong: {line}")
        for line in found.different:
            print(f"different: {line}")
        if found.tokens is not None:
            print(directory.tokenizer.decode(found.tokens))
        count = len(receipt.answer["tokens"])
        print(f"{options.receipt}: {count} tokens, {'bit-identical' if found.identical else 'NOT the same'}")
    return {"ok": found.identical, "wrong": list(found.wrong), "different": list(found.different)}


def _find(name: str) -> Path:
    """The model directory of a name, where they usually are."""
    if Path(name).name != name:
        raise InputError(f"the receipt's model is called {name!r}; expected a directory's name, or --model DIR")
    found = [path.parent for at in (".", "runs", "runs/*") for path in sorted(Path().glob(f"{at}/{name}/model.yaml"))]
    if not found:
        raise InputError(f"no model directory {name!r} in . or runs; expected --model DIR")
    return found[0]

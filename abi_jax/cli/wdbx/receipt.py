"""Write down what a store is now, to be kept elsewhere: whoever has a receipt finds a store that was rewritten since.

abi wdbx receipt memory.wdbx receipt.json --sign-with key.pem
abi wdbx verify memory.wdbx --receipt receipt.json
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abi_jax.cli.wdbx.shared import add_at, add_store, new_file, open_store, version_of

HELP = "a statement of what a store is, to be kept elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    parser.add_argument("out", type=Path, help="file to write; must not exist")
    parser.add_argument("--sign-with", type=Path, metavar="FILE", help="sign with this Ed25519 private key (PEM)")
    add_at(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the receipt and returns it."""
    from abi_jax.files import write_atomically

    out = new_file(options.out)
    with open_store(options, "r") as db:
        receipt = db.receipt(options.sign_with, version_of(options.at))
    write_atomically(out, receipt.text())
    if not options.json:
        print(f"{out}: version {receipt.number}, {receipt.head}")
        if receipt.public_key:
            print(f"signed with public key {receipt.public_key}")
    return asdict(receipt)

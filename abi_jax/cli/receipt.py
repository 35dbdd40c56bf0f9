"""Write a receipt: a statement of what a model's newest link is, to be kept elsewhere.

Whoever rewrites the chain later cannot make the receipt fit it. With a key it is signed (Ed25519).

  abi receipt runs/personas receipt.json
  abi receipt runs/personas receipt.json --new-key ~/.abi-key.pem      make a key, and sign with it
  abi receipt runs/personas receipt.json --key ~/.abi-key.pem
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.files import write_atomically

HELP = "a statement of what a model is, to be kept elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("out", type=Path, help="file to write; must not exist")
    parser.add_argument("--link", type=int, metavar="N", help="number of the link, as abi log shows (default: newest)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key", type=Path, metavar="FILE", help="sign with this private key (PEM)")
    keys.add_argument("--new-key", type=Path, metavar="FILE", help="make a private key, and sign with it")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the receipt and returns it."""
    from abi_jax.lineage_receipt import make_receipt, new_key, read_key
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.model.provenance import Provenance

    chain = Provenance(ModelDirectory.open(options.model).path).chain
    if options.out.exists():
        raise InputError(f"{options.out} exists already; expected a new file for the receipt")
    make_receipt(chain, options.link)  # what is wrong with it is said before a key is made
    key = read_key(options.key) if options.key else new_key(options.new_key) if options.new_key else None
    receipt = make_receipt(chain, options.link, key)
    try:
        write_atomically(options.out, receipt.text())
    except InputError:
        if options.new_key:
            options.new_key.unlink()
        raise
    if not options.json:
        print(f"{options.out}: link {receipt.number}, step {receipt.step}, {receipt.head}")
        if receipt.public_key:
            print(f"signed with public key {receipt.public_key}")
    return asdict(receipt)

"""Check a receipt against a model's chain, or against a copy of the chain alone: the weights are not needed.

Exit status 1 where the receipt does not hold.

  abi check-receipt receipt.json runs/personas
  abi check-receipt receipt.json chain.jsonl --public-key 3b6a27bc...
"""

import argparse
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "check a receipt against a chain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("receipt", type=Path, help="what abi receipt wrote")
    parser.add_argument("chain", type=Path, help="model directory, or a chain.jsonl")
    parser.add_argument("--public-key", metavar="HEX", help="whose signature it must bear")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, prints what is wrong, and returns it."""
    from abi_jax.lineage import HASH, Chain
    from abi_jax.lineage_receipt import check_receipt, read_receipt
    from abi_jax.model.provenance import Provenance

    path = Provenance(options.chain).chain.path if options.chain.is_dir() else options.chain
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a model directory, or a chain.jsonl")
    wanted = None if options.public_key is None else options.public_key.lower()
    if wanted is not None and not HASH.fullmatch(wanted):
        raise InputError(f"--public-key {options.public_key!r}; expected 64 hexadecimal digits")
    receipt = read_receipt(options.receipt)
    wrong = check_receipt(receipt, Chain(path), wanted or "")
    if not options.json:
        for reason in wrong:
            print(reason)
        signed = f"signed with {receipt.public_key[:16]}" if receipt.public_key else "not signed"
        signed += ", whom you did not name" if receipt.public_key and wanted is None else ""
        print(f"{options.receipt}: {'does not hold' if wrong else 'holds'}; link {receipt.number}, {signed}")
    return {"ok": not wrong, "wrong": wrong}

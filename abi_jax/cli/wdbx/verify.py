"""Check all that is stored: every file, link and row. Exit status 1 where anything is not as it was written.

Each finding names the file, what it holds, and what is wrong with it. A receipt that was kept elsewhere finds a store
that was set back to an older state, or rewritten as a whole. Of an encrypted store, all but the contents of rows can be
verified without the key.

  abi wdbx verify memory.wdbx
  abi wdbx verify memory.wdbx --receipt receipt.json
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abi_jax.cli.wdbx.shared import add_store
from abi_jax.errors import InputError

HELP = "find and name damage to a store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    parser.add_argument("--receipt", type=Path, metavar="FILE", help="a receipt of the store as it was")
    parser.add_argument("--public-key", default="", metavar="HEX", help="who must have signed the receipt")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, prints what was found, and returns it."""
    from abi_jax.lineage_receipt import read_receipt
    from abi_jax.wdbx.verify import verify_store

    if isinstance(options.store, Path) and not options.store.is_dir():
        raise InputError(f"{options.store} is not a WDBX store: there is no such directory")
    receipt = None if options.receipt is None else read_receipt(options.receipt)
    findings = verify_store(options.store, options.key, receipt, options.public_key.lower())
    if not options.json:
        for finding in findings:
            print(finding)
        print(f"{options.store}: {len(findings) or 'no'} finding{'' if len(findings) == 1 else 's'}")
    return {"ok": not findings, "findings": [asdict(each) for each in findings]}

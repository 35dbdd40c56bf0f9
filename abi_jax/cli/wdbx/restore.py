"""Make a store of a backup. Every file is checked on the way; nothing is left where one is not as it was.

abi wdbx restore backups/memory.wdbx memory.wdbx
"""

import argparse
from dataclasses import asdict
from typing import Any

from abi_jax.cli.wdbx.shared import place

HELP = "a store from a backup"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("backup", type=place, help="directory of the backup, or its URL")
    parser.add_argument("store", type=place, help="where the store is to be; nothing must be there")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Restores and returns the version."""
    from abi_jax import wdbx

    copied = wdbx.restore(options.backup, options.store)
    if not options.json:
        print(f"{options.store}: version {copied.version}, {copied.copied:,} bytes")
    return {"store": str(options.store), **asdict(copied)}

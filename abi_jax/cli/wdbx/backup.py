"""Copy a whole store, while others read and write it. Done again, only what is new is copied.

The backup is a store of its own: it can be queried, verified, and restored.

  abi wdbx backup memory.wdbx backups/memory.wdbx
  abi wdbx backup memory.wdbx s3://bucket/backups/memory
"""

import argparse
import sys
from dataclasses import asdict
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store, place

HELP = "copy a store that is in use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    parser.add_argument("out", type=place, help="directory or URL of the backup: new, or an older one of the store")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Copies and returns how many bytes there are."""
    with open_store(options, "r") as db:
        copied = db.backup(options.out, progress=sys.stderr.isatty())
    if not options.json:
        kept = f", {copied.kept:,} were there" if copied.kept else ""
        print(f"{options.out}: version {copied.version}, {copied.copied:,} bytes copied{kept}")
    return {"out": str(options.out), **asdict(copied)}

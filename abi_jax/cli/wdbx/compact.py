"""Make one segment of each collection, and take away what can no longer be read.

Never needed: a store that is written to keeps itself small. Useful before it is copied or put away. Large segments get
their inverted lists, which a process that keeps the store open makes in the background.

  abi wdbx compact memory.wdbx
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store

HELP = "make a store as small as it can be"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compacts and returns the bytes before and after."""
    with open_store(options, "a") as db:
        before = db.stats().total_bytes
        db.compact()
        version, after = db.version, db.stats().total_bytes
    if not options.json:
        print(f"{options.store}: {before:,} -> {after:,} bytes; version {version}")
    return {"store": str(options.store), "version": version, "bytes_before": before, "bytes_after": after}

"""What was done to a store, version by version, newest first.

abi wdbx log memory.wdbx
abi wdbx log memory.wdbx --last 100 --json
"""

import argparse
from itertools import islice
from typing import Any

from abi_jax.cli.wdbx.shared import add_damaged, add_store, open_store, table
from abi_jax.errors import InputError

HELP = "what was done to a store, version by version"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    add_damaged(parser)
    parser.add_argument("--last", type=int, default=20, metavar="N", help="so many, 0 for all (default: 20)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads, prints a table, and returns the versions."""
    if options.last < 0:
        raise InputError(f"--last {options.last}; expected 0 or more")
    with open_store(options, "r") as db:
        versions = [_told(each) for each in islice(db.log(), options.last or None)]
        total = db.version
    if not options.json:
        rows = [
            [
                each["version"],
                each["time"][:19],
                each["kind"],
                each["collection"] or "",
                each["rows"],
                each["link"][:16],
            ]
            for each in versions
        ]
        for line in table(["version", "time", "kind", "collection", "rows", "link"], rows):
            print(line)
        if total > len(versions):
            print(f"... and {total - len(versions):,} older; --last 0 shows all")
    return {"store": str(options.store), "version": total, "versions": versions}


def _told(version: dict[str, Any]) -> dict[str, Any]:
    """A sealing that brings rows is an import."""
    return version | {"kind": "import"} if version["kind"] == "seal" and version["rows"] else version

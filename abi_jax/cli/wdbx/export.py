"""Write the rows of a collection, as it is or was, to a file that others read: Parquet, Arrow, JSON lines or NumPy.

What is exported can be imported again, as the same rows.

  abi wdbx export memory.wdbx notes.parquet
  abi wdbx export memory.wdbx notes.jsonl.gz --at before-the-change
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from abi_jax.cli.wdbx.shared import add_at, add_damaged, add_store, open_store, the_collection, version_of

HELP = "rows to a file: Parquet, Arrow, JSON lines, NumPy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    add_damaged(parser)
    parser.add_argument("out", type=Path, help="file to write: .parquet, .arrow, .jsonl, .jsonl.gz or .npz")
    add_at(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Exports and returns how many rows there are."""
    with open_store(options, "r") as db:
        collection = the_collection(db, options)
        view = collection.view(version_of(options.at))
        rows = view.export(options.out, progress=sys.stderr.isatty())
    if not options.json:
        print(f"{options.out}: {rows:,} rows of {collection.name} at version {view.version}")
    return {"collection": collection.name, "version": view.version, "rows": rows, "out": str(options.out)}

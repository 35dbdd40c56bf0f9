"""What a store has: collections, rows, versions, tags, bytes.

abi wdbx stats memory.wdbx
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store, table

HELP = "what a store has"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Counts, prints tables, and returns the numbers."""
    with open_store(options, "r") as db:
        views = db.views(db.version)
        said = {
            name: {
                "rows": len(view),
                "dim": view.spec.dim,
                "dtype": view.spec.dtype,
                "metric": view.spec.metric,
                "segments": len(view.segments),
                "fields": dict(view.spec.schema),
            }
            for name, view in views.items()
        }
        version = db.version
    size = sum(each.stat().st_size for each in options.store.rglob("*") if each.is_file())
    if not options.json:
        print(f"{options.store}: version {version}, {size:,} bytes")
        columns = ["collection", "rows", "dim", "dtype", "metric", "segments", "fields"]
        rows = [
            [name, *(each[c] for c in columns[1:-1]), ", ".join(f"{f}={t}" for f, t in views[name].spec.schema)]
            for name, each in said.items()
        ]
        for line in table(columns, rows):
            print(line)
    return {"store": str(options.store), "version": version, "bytes": size, "collections": said}

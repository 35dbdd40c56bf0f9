"""What a store has: collections, rows, versions, tags, bytes, and who reads which version.

abi wdbx stats memory.wdbx
"""

import argparse
from dataclasses import asdict
from typing import Any

from abi_jax.cli.wdbx.shared import add_damaged, add_store, open_store, table

HELP = "what a store has"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    add_damaged(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Counts, prints tables, and returns the numbers."""
    with open_store(options, "r") as db:
        stats = db.stats()
        specs = {name: db.collection(name).spec for name in db.collections()}
    said = {
        each.name: asdict(each)
        | {"dim": specs[each.name].dim, "dtype": specs[each.name].dtype, "metric": specs[each.name].metric}
        | {"fields": dict(specs[each.name].schema), "encoder": specs[each.name].encoder}
        for each in stats.collections
        if each.name in specs  # not what is left out of a damaged store
    }
    if not options.json:
        print(f"{options.store}: version {stats.version}, {stats.total_bytes:,} bytes")
        columns = ["collection", "rows", "dead", "dim", "dtype", "metric", "segments", "fields"]
        rows = [
            [name, *(each[c] for c in columns[1:-1]), ", ".join(f"{f}={t}" for f, t in each["fields"].items())]
            for name, each in said.items()
        ]
        for line in table(columns, rows):
            print(line)
        if stats.tags:
            print("tags: " + ", ".join(f"{name} = {version}" for name, version in sorted(stats.tags.items())))
    return asdict(stats) | {"store": str(options.store), "total_bytes": stats.total_bytes, "collections": said}

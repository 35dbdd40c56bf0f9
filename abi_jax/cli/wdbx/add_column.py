"""More fields of metadata for a collection. Rows that are there have no value in them.

abi wdbx add-column memory.wdbx source=str rating=float
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store, schema_of, the_collection

HELP = "more fields of metadata"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    parser.add_argument(
        "fields",
        nargs="+",
        metavar="NAME=TYPE",
        help="a new field: str, int, float, bool, time, bytes, list[str] or list[int]",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Adds them and returns what the collection is now."""
    schema = schema_of(options.fields)
    with open_store(options, "a") as db:
        collection = the_collection(db, options)
        version = collection.add_columns(schema)
        spec = collection.spec
    if not options.json:
        fields = ", ".join(f"{name}={kind}" for name, kind in spec.schema)
        print(f"{options.store}: collection {spec.name} has the fields {fields}; version {version}")
    return {"store": str(options.store), "version": version, "collection": spec.to_json()}

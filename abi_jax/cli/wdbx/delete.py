"""Delete rows by their ids. Earlier versions keep them for as long as these are kept.

abi wdbx delete memory.wdbx doc-1 doc-2
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, ids_of, open_store, the_collection

HELP = "delete rows by their ids"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    parser.add_argument("ids", nargs="+", metavar="ID", help="ids of rows")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Deletes and returns how many rows there were."""
    with open_store(options, "a") as db:
        collection = the_collection(db, options)
        deleted = collection.delete(ids_of(collection, options.ids))
        version = db.version
    if not options.json:
        asked = f" of {len(options.ids)} ids" if deleted != len(options.ids) else ""
        print(f"{options.store}: {deleted} row{'' if deleted == 1 else 's'}{asked} deleted; version {version}")
    return {"collection": collection.name, "version": version, "deleted": deleted}

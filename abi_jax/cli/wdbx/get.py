"""Show rows by their ids, as they are or as they were. Exit status 1 where one of them is not there.

abi wdbx get memory.wdbx doc-1 doc-2
abi wdbx get memory.wdbx doc-1 --at 17 --vectors --json
"""

import argparse
import sys
from typing import Any

from abi_jax.cli.wdbx.shared import (
    add_at,
    add_damaged,
    add_store,
    ids_of,
    open_store,
    plain_metadata,
    table,
    the_collection,
    told,
    version_of,
)

HELP = "show rows by their ids"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    add_damaged(parser)
    parser.add_argument("ids", nargs="+", metavar="ID", help="ids of rows")
    parser.add_argument("--vectors", action="store_true", help="print vectors, too")
    add_at(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reads, prints a table, and returns the rows and what is missing."""
    with open_store(options, "r") as db:
        collection = the_collection(db, options)
        ids = ids_of(collection, options.ids)
        view = collection.view(version_of(options.at))
        rows = dict(zip(ids, view.get(ids), strict=True))
    found = [row for row in rows.values() if row is not None]
    missing = [id_ for id_, row in rows.items() if row is None]
    if not options.json:
        lines = [[row.id, row.born, row.document or "", told(row.metadata)] for row in found]
        for line in table(["id", "since", "document", "metadata"], lines) if lines else ():
            print(line)
        if options.vectors:
            for row in found:
                print(f"{row.id}  {' '.join(f'{x:g}' for x in row.vector.tolist())}")
    for id_ in missing:
        print(f"{id_} is not in {collection.name} at version {view.version}", file=sys.stderr)
    told_rows: list[dict[str, Any]] = [
        {"id": row.id, "born": row.born, "metadata": plain_metadata(row.metadata)}
        | ({} if row.document is None else {"document": row.document})
        | ({"vector": row.vector.tolist()} if options.vectors else {})
        for row in found
    ]
    return {
        "ok": not missing,
        "collection": collection.name,
        "version": view.version,
        "rows": told_rows,
        "missing": missing,
    }

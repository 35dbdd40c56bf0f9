"""What a store held at a version, a tag or a time. With --tag, gives that version a name; it is kept from then on.
With --untag, takes the tag that it is called by away; the rows that it alone kept go with a later sealing.

abi wdbx at memory.wdbx 17
abi wdbx at memory.wdbx 2026-03-01T12:00
abi wdbx at memory.wdbx 17 --tag before-the-change
abi wdbx at memory.wdbx before-the-change --untag
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_damaged, add_store, open_store, table, version_of

HELP = "what a store held at a version, a tag or a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    add_damaged(parser)
    parser.add_argument("at", metavar="VERSION", help="a version, a tag, or a time in ISO 8601 (UTC)")
    naming = parser.add_mutually_exclusive_group()
    naming.add_argument("--tag", metavar="NAME", help="a name for that version")
    naming.add_argument("--untag", action="store_true", help="take the tag VERSION away")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Looks, prints a table, and returns the collections of then."""
    with open_store(options, "a" if options.untag or options.tag is not None else "r") as db:
        version = db.resolve(version_of(options.at))
        held = {name: len(view) for name, view in db.views(version).items()}
        if options.tag is not None:
            db.tag(options.tag, version)
        elif options.untag:
            db.untag(options.at)
    if not options.json:
        said = f", tagged {options.tag}" if options.tag else f", no longer tagged {options.at}" if options.untag else ""
        print(f"{options.store} at version {version}{said}")
        for line in table(["collection", "rows"], list(held.items())):
            print(line)
    return {"store": str(options.store), "version": version, "tag": options.tag, "collections": held}

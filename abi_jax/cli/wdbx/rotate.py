"""Change the master key of an encrypted store. No data is written anew: it takes as long for much as for little.

The data keys in the store are wrapped again, with the new key; the former one opens the store no more. A new key is any
32 bytes in a file of your own. Keep a copy, and the former key as long as there are backups that it opens.

  head -c 32 /dev/urandom > new.key
  abi wdbx rotate memory.wdbx --key old.key --new-key new.key
  abi wdbx rotate memory.wdbx --key env:OLD_KEY --new-key env:NEW_KEY

Who had the former key and a copy of the store can still read that copy. What he must not read from here on is written
under other data keys by: abi wdbx compact memory.wdbx --key new.key
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store

HELP = "another master key for an encrypted store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    parser.add_argument(
        "--new-key", required=True, metavar="KEY", help="what opens the store from here on: file of a key, or env:NAME"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rotates and returns how many data keys were wrapped again."""
    from abi_jax.wdbx.erase import ring_of

    with open_store(options, "a") as db:
        db.rotate(options.new_key)
        keys = len(ring_of(db.storage).entries)
    if not options.json:
        print(f"{options.store}: {keys} data keys wrapped again; from here on it opens with {options.new_key}")
    return {"store": str(options.store), "data_keys": keys}

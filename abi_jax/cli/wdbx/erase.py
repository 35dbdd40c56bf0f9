"""Erase a tenant: take the keys away that its collections are encrypted with, for good.

What the tenant wrote is noise from here on, at every version, and so are copies of its files. The rest of the store is
as it was, and still verifies; its log says that the tenant was erased, and when. A collection is a tenant's where it
was made with --tenant.

  abi wdbx create memory.wdbx chats-17 --dim 384 --key master.key --tenant customer-17
  abi wdbx erase memory.wdbx customer-17 --key master.key          # says what would go
  abi wdbx erase memory.wdbx customer-17 --key master.key --yes

Backups keep the keys that they were made with: make each of them again, or rotate the master key and destroy the old.
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.shared import add_store, open_store
from abi_jax.errors import InputError

HELP = "make noise of all that a tenant wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser, collection=False)
    parser.add_argument("tenant", help="whose collections")
    parser.add_argument("--yes", action="store_true", help="do it: nothing brings back what is erased")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Erases and returns the version, and what is gone."""
    from abi_jax.wdbx.erase import ring_of

    with open_store(options, "a") as db:
        ring_of(db.storage)
        own = [name for name in db.collections() if db.collection(name).spec.tenant == options.tenant]
        rows = sum(len(db.collection(name)) for name in own)
        if own and not options.yes:
            raise InputError(
                f"tenant {options.tenant!r} has {', '.join(own)}, {rows:,} row{'' if rows == 1 else 's'}; nothing "
                "brings back what is erased: expected --yes"
            )
        version = db.erase_tenant(options.tenant)
    if not options.json:
        gone = ", ".join(own) or "collections that were dropped before"
        print(f"{options.store}: tenant {options.tenant} is erased, with {gone}; version {version}")
    return {"store": str(options.store), "version": version, "tenant": options.tenant, "collections": own, "rows": rows}

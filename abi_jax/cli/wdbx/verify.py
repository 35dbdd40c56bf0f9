"""Check all that is stored: every file, link and row. Exit status 1 where anything is not as it was written.

Each finding names the file, what it holds, and what is wrong with it.

  abi wdbx verify memory.wdbx
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "find and name damage to a store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("store", type=Path, help="directory of the store")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, prints what was found, and returns it."""
    from abi_jax.wdbx.storage.local import LocalStorage
    from abi_jax.wdbx.verify import verify

    if not options.store.is_dir():
        raise InputError(f"{options.store} is not a WDBX store: there is no such directory")
    findings = verify(LocalStorage(options.store))
    if not options.json:
        for finding in findings:
            print(finding)
        print(f"{options.store}: {len(findings) or 'no'} finding{'' if len(findings) == 1 else 's'}")
    return {"ok": not findings, "findings": [asdict(each) for each in findings]}

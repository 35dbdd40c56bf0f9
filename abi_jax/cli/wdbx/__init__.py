"""A store of vectors, with their texts and metadata: versioned, chained, searched.

  abi wdbx create memory.wdbx notes --encoder ~/models/all-MiniLM-L6-v2 --field lang=str --field year=int
  abi wdbx import memory.wdbx notes.parquet
  abi wdbx query memory.wdbx "how do I reset the cluster" --top-k 5
  abi wdbx query memory.wdbx '[0.1, 0.7, ...]' --where '{"lang": "en", "year": {"$gte": 2020}}'
  abi wdbx query memory.wdbx query.npy --at 2026-03-01T12:00
  abi wdbx get memory.wdbx doc-1 doc-2;  abi wdbx delete memory.wdbx doc-1
  abi wdbx log memory.wdbx;  abi wdbx at memory.wdbx 17 --tag before-the-change
  abi wdbx verify memory.wdbx;  abi wdbx stats memory.wdbx;  abi wdbx backup memory.wdbx backups/memory.wdbx
  abi wdbx export memory.wdbx what-is-whole.parquet --damaged ignore
  abi wdbx rotate memory.wdbx --key old.key --new-key new.key;  abi wdbx erase memory.wdbx customer-17 --key new.key

A store is a directory; `create` and `import` make it. Where it has one collection, no --collection need be given. Exit
status of verify 1 where anything is wrong, of get 1 where an id is not there. `abi wdbx ACTION --help` tells more.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from abi_jax.cli.shared import add_actions

HELP = "a store of vectors: import, query, versions, verify"
ACTIONS = (
    *("create", "add-column", "import", "query", "get", "delete", "export", "log", "at"),
    *("verify", "receipt", "prove", "compact", "backup", "restore", "rotate", "erase", "stats"),
)


def add_arguments(parser: argparse.ArgumentParser) -> Sequence[argparse.ArgumentParser]:
    """Declares the arguments of every action; returns their parsers."""
    return add_actions(parser, ACTIONS, _module)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one action and returns what it did."""
    result: dict[str, Any] = _module(options.action).run(options)
    return result | ({"left_out": options.left_out} if getattr(options, "damaged", "refuse") == "ignore" else {})


def _module(action: str) -> Any:
    return importlib.import_module(f"abi_jax.cli.wdbx.{'import_' if action == 'import' else action.replace('-', '_')}")

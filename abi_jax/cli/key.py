"""Make a key for `abi serve`, and write its hash into a file.

  abi key keys.yaml laptop --role writer
  abi key keys.yaml dashboard --role reader --tenant acme --days 90 --requests-per-minute 600

The key is printed once and kept nowhere. Deleting its lines from the file revokes it, also while a server runs.
"""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HELP = "make a key for abi serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("file", type=Path, help="YAML file of keys; made if need be")
    parser.add_argument("name", help="who will use it")
    parser.add_argument("--role", default="reader", help="reader (asks), writer (writes into the memory), or admin")
    tenant = "whose collections it sees; by default those of no tenant, as admin all"
    parser.add_argument("--tenant", default="", help=tenant)
    parser.add_argument("--days", type=float, help="how long it is good")
    parser.add_argument("--requests-per-minute", type=float, default=0.0, metavar="N", help="how often it may ask")
    parser.add_argument("--tokens-per-minute", type=float, default=0.0, metavar="N", help="how much it may ask for")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Adds a key and returns it."""
    from abi_jax.serve.http.keys import Key, add_key

    expires = ""
    if options.days is not None:
        expires = (datetime.now(UTC) + timedelta(days=options.days)).isoformat(timespec="seconds")
    limits = (options.requests_per_minute, options.tokens_per_minute)
    key = Key(options.name, "0" * 64, options.role, options.tenant, expires, *limits)
    secret = add_key(options.file, key)
    if not options.json:
        print(secret)
    return {"file": str(options.file), "name": options.name, "key": secret, "expires": expires or None}

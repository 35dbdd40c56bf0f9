"""Make a collection, and the store around it where there is none yet.

With an encoder (a sentence-encoder directory: MiniLM, BGE, E5), the collection takes and finds texts: it remembers
where the encoder is, and has its dimension and a column `document`.

  abi wdbx create memory.wdbx notes --encoder ~/models/all-MiniLM-L6-v2 --field lang=str --field year=int
  abi wdbx create memory.wdbx vectors --dim 768 --metric ip --dtype float16 --ids int
"""

import argparse
from typing import Any

from abi_jax.cli.wdbx.encoder import add_encoder, open_encoder
from abi_jax.cli.wdbx.shared import PLACE, place, schema_of
from abi_jax.errors import InputError

HELP = "make a collection, and its store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("store", type=place, help=PLACE)
    parser.add_argument("collection", help="name of the collection")
    parser.add_argument("--dim", type=int, metavar="D", help="numbers in a vector")
    parser.add_argument("--key", metavar="KEY", help="encrypts a new store: file of the master key, or env:NAME")
    parser.add_argument(
        "--tenant", default="", metavar="NAME", help="whose data it is, of an encrypted store: see erase"
    )
    parser.add_argument("--metric", default="cosine", metavar="NAME", help="cosine (default), l2 or ip")
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="float32 (default), float16, bfloat16, int8")
    parser.add_argument("--ids", default="str", metavar="TYPE", help="str (default) or int")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="a field of metadata: str, int, float, bool, time, bytes, list[str] or list[int] (repeatable)",
    )
    add_encoder(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Makes the collection and says what it is."""
    from abi_jax import wdbx

    schema = schema_of(options.field, "--field")
    if options.dim is None and options.encoder is None:
        raise InputError("expected --dim, the numbers in a vector, or --encoder")
    encoder = None if options.encoder is None else open_encoder(options.encoder)
    with wdbx.open(options.store, key=options.key) as db:
        made = db.create_collection(
            options.collection, options.dim, options.metric, options.dtype, schema, options.ids, encoder, options.tenant
        )
        version = db.version
    spec = made.spec
    if not options.json:
        print(f"{options.store}: collection {spec.name}, {spec.dim} x {spec.dtype}, {spec.metric}; version {version}")
    return {"store": str(options.store), "version": version, "collection": spec.to_json()}

"""Prove what a store has of an id, or that it has nothing, to somebody who holds a receipt of it and not the store.

With --check, checks such a proof: neither the store nor a key is needed. Exit status 1 where it does not hold.

  abi wdbx prove memory.wdbx doc-1 proof.json
  abi wdbx prove --check proof.json --receipt receipt.json
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.cli.wdbx.shared import (
    PLACE,
    add_at,
    ids_of,
    new_file,
    open_store,
    place,
    plain_metadata,
    the_collection,
    version_of,
)
from abi_jax.errors import InputError

if TYPE_CHECKING:
    from abi_jax.lineage_receipt import Receipt
    from abi_jax.wdbx import Row

HELP = "prove what a store has of an id, or check such a proof"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("store", nargs="?", type=place, help=PLACE)
    parser.add_argument("id", nargs="?", help="id of the row")
    parser.add_argument("out", nargs="?", type=Path, help="file to write; must not exist")
    parser.add_argument("--collection", "-c", metavar="NAME", help="needed where the store has several")
    parser.add_argument("--key", metavar="KEY", help="of an encrypted store: file of the master key, or env:NAME")
    parser.add_argument("--check", type=Path, metavar="PROOF", help="check this proof")
    parser.add_argument("--receipt", type=Path, metavar="FILE", help="receipt that the proof is checked with")
    parser.add_argument("--link", metavar="HEX", help="link that is trusted, in place of a receipt")
    parser.add_argument("--public-key", default="", metavar="HEX", help="who must have signed the receipt")
    add_at(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Makes or checks a proof and returns what it shows."""
    return _make(options) if options.check is None else _check(options)


def _make(options: argparse.Namespace) -> dict[str, Any]:
    from abi_jax.files import write_atomically

    if options.out is None:
        raise InputError("expected STORE ID OUT, or --check PROOF; see abi wdbx prove --help")
    out = new_file(options.out)
    with open_store(options, "r") as db:
        collection = the_collection(db, options)
        id_ = ids_of(collection, [options.id])[0]
        proof = collection.prove(id_, version_of(options.at), _receipt(options))
        row = collection.get([id_], proof.version)[0]
        link = db.link()
    text = proof.text()
    write_atomically(out, text)
    if not options.json:
        has = "has a row" if row is not None else "has no row"
        print(f"{out}: {collection.name} {has} of {id_!r} at version {proof.version}; {len(text):,} bytes")
        if options.receipt is None:
            print(f"to be checked with a receipt of now, or with --link {link}")
    return {"out": str(out), "id": id_, "version": proof.version, "there": row is not None, "link": link}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    from abi_jax.wdbx import ProofError, check_proof, read_proof

    trusted = _receipt(options) or options.link
    if trusted is None:
        raise InputError("a proof is worth what it is checked with; expected --receipt FILE or --link HEX")
    try:
        shown = check_proof(read_proof(options.check), trusted, options.public_key.lower())
    except ProofError as error:
        if not options.json:
            print(f"{options.check}: {error}")
        return {"ok": False, "wrong": str(error)}
    row = shown.row
    if not options.json:
        has = "no row" if row is None else "this row"
        print(f"{options.check}: holds; at version {shown.version}, {shown.collection} had {has} of {shown.id!r}")
        for name, value in _told(row).items():
            print(f"  {name}: {value}")
    said = None if row is None else {"born": row.born} | _told(row)
    return {"ok": True, "collection": shown.collection, "id": shown.id, "version": shown.version, "row": said}


def _told(row: "Row | None") -> dict[str, Any]:
    """What a proof shows of a row, but its vector."""
    if row is None:
        return {}
    return ({} if row.document is None else {"document": row.document}) | {"metadata": plain_metadata(row.metadata)}


def _receipt(options: argparse.Namespace) -> "Receipt | None":
    from abi_jax.lineage_receipt import read_receipt

    return None if options.receipt is None else read_receipt(options.receipt)

"""Import rows from files: Parquet, Arrow, JSON lines, .npy or .npz; all of them, or none.

Where there is no store yet, or no such collection, it is made as the first file needs it: named after the file, of the
dimension of its vectors, with a field for every other column. Where rows have no vectors, --encoder makes them of the
texts in the column that --document names; the collection remembers the encoder.

  abi wdbx import memory.wdbx notes.parquet
  abi wdbx import memory.wdbx faq.jsonl --encoder ~/models/all-MiniLM-L6-v2 --document text
  abi wdbx import memory.wdbx vectors.npy --metric l2 --collection photos
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.cli.wdbx.encoder import add_encoder, open_encoder, with_encoder
from abi_jax.cli.wdbx.shared import add_store, is_store
from abi_jax.errors import InputError

if TYPE_CHECKING:
    from abi_jax.wdbx import Collection, Database

HELP = "rows from files: Parquet, Arrow, JSON lines, NumPy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of rows, of one kind")
    parser.add_argument("--id", default=None, metavar="COLUMN", help="ids (default: id; without it, rows are numbered)")
    parser.add_argument("--vector", default=None, metavar="COLUMN", help="vectors (default: vector)")
    parser.add_argument("--document", metavar="COLUMN", help="texts (default: document)")
    parser.add_argument("--fields", metavar="A,B", help="columns to take as metadata (default: all others)")
    parser.add_argument(
        "--duplicates",
        default="error",
        metavar="HOW",
        help="of rows of one id: error (default), or last, keep the last",
    )
    parser.add_argument("--metric", default="cosine", metavar="NAME", help="of a new collection (default: cosine)")
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="of a new collection (default: float32)")
    add_encoder(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Imports and returns how many rows there are."""
    from abi_jax import wdbx

    for file in options.files:
        if not file.exists():
            raise InputError(f"{file} is not there; expected a file to import")
    encoder = None if options.encoder is None else open_encoder(options.encoder)
    inferred = None if _is_there(options) else _infer(options, encoder)
    with wdbx.open(options.store, key=options.key) as db:
        collection = _collection(db, options) if inferred is None else db.create_collection(**inferred, encoder=encoder)
        if inferred is None:
            collection = with_encoder(db, collection, options.encoder)
        try:
            rows = _import(collection, options)
        except BaseException:
            if inferred is not None:  # nobody asked for an empty one
                db.drop_collection(collection.name)
            raise
        version, total = db.version, len(collection)
    if not options.json:
        print(f"{options.store}: {rows:,} rows imported, collection {collection.name} has {total:,}; version {version}")
    return {"collection": collection.name, "version": version, "imported": rows, "rows": total}


def _import(collection: "Collection", options: argparse.Namespace) -> int:
    return sum(
        collection.import_(
            file,
            id=options.id,
            vector=options.vector,
            fields=None if options.fields is None else options.fields.split(","),
            duplicates=options.duplicates,
            progress=sys.stderr.isatty(),
            document=options.document,
        )
        for file in options.files
    )


def _is_there(options: argparse.Namespace) -> bool:
    """Whether the collection that is meant exists."""
    from abi_jax import wdbx

    if not is_store(options.store):
        return False
    with wdbx.open(options.store, mode="r", key=options.key) as db:
        names = db.collections()
    return options.collection in names or (options.collection is None and bool(names))


def _collection(db: "Database", options: argparse.Namespace) -> "Collection":
    from abi_jax.cli.wdbx.shared import the_collection

    return the_collection(db, options)


def _infer(options: argparse.Namespace, encoder: Any) -> dict[str, Any]:
    """What the new collection has to be."""
    from abi_jax.wdbx.transfer.infer import infer_file

    first = options.files[0]
    id_, vector, text = options.id or "id", options.vector or "vector", options.document or "document"
    fields = None if options.fields is None else [name for name in options.fields.split(",") if name != text]
    found = infer_file(first, id_, vector, fields)
    schema = {name: kind for name, kind in found.schema.items() if name != text}
    if options.document is not None or text in found.schema:
        schema["document"] = "str"
    if found.dim is None and encoder is None:
        raise InputError(f"{first} has no column {vector!r}; expected vectors, or --encoder DIR to make them of texts")
    name = options.collection or re.sub(r"[^A-Za-z0-9_.-]", "_", first.name.split(".")[0]) or "rows"
    return {
        "name": name,
        "dim": found.dim,
        "metric": options.metric,
        "dtype": options.dtype,
        "schema": schema,
        "ids": found.ids,
    }

"""What several actions need: an open store, the collection that is meant, tables for people."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.errors import InputError

if TYPE_CHECKING:
    from abi_jax.wdbx import Collection, Database

WIDEST = 60
PLACE = "directory of the store, or its URL: s3://bucket/path, gs://bucket/path"


def add_store(parser: argparse.ArgumentParser, collection: bool = True) -> None:
    """The store, and which of its collections."""
    parser.add_argument("store", type=place, help=PLACE)
    parser.add_argument("--key", metavar="KEY", help="of an encrypted store: file of the master key, or env:NAME")
    if collection:
        parser.add_argument("--collection", "-c", metavar="NAME", help="needed where the store has several")


def add_at(parser: argparse.ArgumentParser) -> None:
    """`--at`: a version of the past."""
    parser.add_argument(
        "--at", metavar="VERSION", help="as it was: a version, a tag, or a time such as 2026-03-01T12:00 (UTC)"
    )


def add_damaged(parser: argparse.ArgumentParser) -> None:
    """`--damaged`: of a damaged store, what is whole."""
    parser.add_argument(
        "--damaged",
        choices=("refuse", "ignore"),
        default="refuse",
        help="ignore: of a damaged store shows what is whole, and says which files are left out (default: refuse)",
    )


def open_store(options: argparse.Namespace, mode: str) -> "Database":
    """The store, which must be there: `mode` "r" to read it beside others, "a" to write.

    Prints what is left out of a damaged one, and puts it into `options.left_out`.
    """
    from abi_jax import wdbx

    if not is_store(options.store):
        raise InputError(f"{options.store} is not a WDBX store; abi wdbx create or import makes one")
    db = wdbx.open(options.store, mode=mode, key=options.key, damaged=getattr(options, "damaged", "refuse"))
    options.left_out = [str(each) for each in db.left_out]
    for each in options.left_out:
        print(f"left out: {each}", file=sys.stderr)
    return db


def place(text: str) -> Path | str:
    """Where a store is, as it is typed: a URL stays one."""
    return text if "://" in text else Path(text)


def is_store(where: Path | str) -> bool:
    """Whether there is a store."""
    from abi_jax.wdbx.storage.place import open_storage

    return open_storage(where).read("wdbx.json") is not None


def new_file(path: Path) -> Path:
    """A file that is to be written, where none is yet."""
    if path.exists():
        raise InputError(f"{path} exists already; expected a new file")
    return path


def the_collection(db: "Database", options: argparse.Namespace) -> "Collection":
    """The collection that was named, or the only one."""
    names = db.collections()
    if options.collection is not None:
        return db.collection(options.collection)
    if len(names) != 1:
        has = ", ".join(names) or "none"
        raise InputError(f"{options.store} has the collections: {has}; expected --collection with one of them")
    return db.collection(names[0])


def version_of(text: str | None) -> int | str | None:
    """A version as it is typed: digits are its number, anything else a tag or a time."""
    return int(text) if text is not None and text.isdecimal() else text


def ids_of(collection: "Collection", texts: Sequence[str]) -> list[str | int]:
    """Ids as they are typed, of the collection's type."""
    if collection.spec.ids == "str":
        return list(texts)
    try:
        return [int(each) for each in texts]
    except ValueError:
        wrong = next(each for each in texts if not each.lstrip("-").isdecimal())
        raise InputError(f"id {wrong!r}: collection {collection.name} has ids that are whole numbers") from None


def schema_of(fields: Sequence[str], option: str = "") -> dict[str, str]:
    """Fields and their types, as they are typed: NAME=TYPE. option: what errors name."""
    schema: dict[str, str] = {}
    for field in fields:
        name, given, kind = field.rpartition("=")
        if not given or name in schema:
            raise InputError(f"{option} {field!r}; expected NAME=TYPE, each name once, e.g. year=int".strip())
        schema[name] = kind
    return schema


def where_of(text: str | None) -> dict[str, Any] | None:
    """`--where` as a filter."""
    if text is None:
        return None
    try:
        made = json.loads(text)
    except ValueError as error:
        raise InputError(f"--where {text!r} is not JSON: {error}") from None
    if not isinstance(made, dict):
        raise InputError(f'--where {text!r}; expected an object such as {{"year": {{"$gte": 2020}}}}')
    return made


def plain(value: Any) -> Any:
    """Metadata as JSON says it: times in ISO 8601, bytes as hex."""
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else value


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """All of a row's metadata as JSON says it."""
    return {name: plain(value) for name, value in metadata.items()}


def told(metadata: Mapping[str, Any]) -> str:
    """Metadata in a line."""
    return "  ".join(f"{name}={plain(value)}" for name, value in metadata.items())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Lines of a table: numbers to the right, texts to the left, none wider than `WIDEST` but the last."""
    from abi_jax.data.clean import one_line

    texts = [
        [f"{each:,}" if isinstance(each, int) and not isinstance(each, bool) else str(each) for each in row]
        for row in rows
    ]
    last = len(columns) - 1
    texts = [[one_line(each, WIDEST if i < last else 2 * WIDEST) for i, each in enumerate(row)] for row in texts]
    widths = [max(len(name), *(len(row[i]) for row in texts), 0) for i, name in enumerate(columns)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for row in (list(columns), *texts):
        made = (
            each.rjust(width) if r else each.ljust(width) for each, width, r in zip(row, widths, right, strict=True)
        )
        yield "  ".join(made).rstrip()

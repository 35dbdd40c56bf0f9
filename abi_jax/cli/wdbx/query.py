"""Find what is near a text or a vector.

QUERY is a text, where the collection has an encoder or --mode is keyword; or a vector: a JSON list of numbers, or a
.npy file with one or several. Scores: cosine and ip are best when high, l2 (squared distance) when low.

  abi wdbx query memory.wdbx "how do I reset the cluster" --top-k 5
  abi wdbx query memory.wdbx "error 4711" --mode keyword
  abi wdbx query memory.wdbx '[0.6, 0.8]' --where '{"lang": "en", "$or": [{"year": {"$gte": 2020}}, {"pinned": true}]}'
  abi wdbx query memory.wdbx queries.npy --at before-the-change --json
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.cli.wdbx.encoder import add_encoder, with_encoder
from abi_jax.cli.wdbx.shared import (
    add_at,
    add_damaged,
    add_store,
    open_store,
    plain_metadata,
    table,
    the_collection,
    told,
    version_of,
    where_of,
)
from abi_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from abi_jax.wdbx import Collection, Hit

HELP = "find what is near a text or a vector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_store(parser)
    add_damaged(parser)
    parser.add_argument("query", metavar="QUERY", help="a text, a JSON list of numbers, or a .npy file")
    parser.add_argument("--top-k", "-k", type=int, default=10, metavar="K", help="how many to find (default: 10)")
    parser.add_argument(
        "--mode",
        default="vector",
        metavar="HOW",
        help="vector (default): nearness; keyword: its words (BM25); hybrid: both, fused by rank",
    )
    parser.add_argument(
        "--recall", type=float, default=1.0, metavar="R", help="of the nearest rows, the share to be found (default: 1)"
    )
    parser.add_argument("--explain", action="store_true", help="say how rows were searched, and why")
    parser.add_argument("--text", metavar="TEXT", help="words to look for beside a vector, for --mode hybrid")
    parser.add_argument("--fields", metavar="A,B", help="where to look for words (default: document)")
    parser.add_argument("--where", metavar="JSON", help='a filter, e.g. \'{"lang": "en", "year": {"$gte": 2020}}\'')
    add_at(parser)
    add_encoder(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Searches, prints a table, and returns the hits."""
    where = where_of(options.where)
    vectors = read_vectors(options.query)
    with open_store(options, "r") as db:
        collection = the_collection(db, options)
        if vectors is None and options.mode != "keyword":
            collection = with_encoder(db, collection, options.encoder)
            if collection.encoder is None:
                raise InputError(_no_encoder(collection, options.query))
        asked: Any = options.query if vectors is None else vectors
        version = db.resolve(version_of(options.at))
        fields = options.fields.split(",") if options.fields else None
        answers, how = collection.query(
            asked,
            options.top_k,
            where,
            version,
            text=options.text,
            mode=options.mode,
            fields=fields,
            recall=options.recall,
            explain=True,
        )
    several = vectors is not None and vectors.ndim == 2
    many: list[list[Hit]] = answers if several else [answers]
    if not options.json:
        for number, hits in enumerate(many):
            if several:
                print(f"query {number}:")
            _print(hits)
        if options.explain:
            for part in how:
                print("  ".join(f"{name}={value}" for name, value in part.items()))
    found = [[_as_json(hit) for hit in hits] for hits in many]
    said: dict[str, Any] = {"collection": collection.name, "version": version, "mode": options.mode}
    said |= {"explain": how} if options.explain else {}
    return said | ({"queries": found} if several else {"hits": found[0]})


def read_vectors(text: str) -> "np.ndarray | None":
    """The vector or vectors that `text` is or names; None where it is a text to search for."""
    import numpy as np

    if text.endswith(".npy") and Path(text).is_file():
        try:
            return np.asarray(np.load(text))
        except (ValueError, OSError) as error:
            raise InputError(f"{text} is not a .npy file of numbers: {error}") from None
    if not text.lstrip().startswith("["):
        return None
    try:
        made = np.asarray(json.loads(text))
    except ValueError:
        return None
    return made if made.dtype.kind in "fi" and made.ndim in (1, 2) else None


def _no_encoder(collection: "Collection", text: str) -> str:
    return (
        f"query {text!r} is a text, and collection {collection.name} has no encoder to make a vector of it; expected "
        f"--encoder DIR, --mode keyword, a JSON list of {collection.spec.dim} numbers, or a .npy file"
    )


def _as_json(hit: "Hit") -> dict[str, Any]:
    made = {"id": hit.id, "score": hit.score, "metadata": plain_metadata(hit.metadata)}
    return made if hit.document is None else made | {"document": hit.document}


def _print(hits: "list[Hit]") -> None:
    texts = any(hit.document is not None for hit in hits)
    rows = [[f"{hit.score:.4f}", hit.id, *([hit.document or ""] if texts else []), told(hit.metadata)] for hit in hits]
    for line in table(["score", "id", *(["document"] if texts else []), "metadata"], rows):
        print(line)

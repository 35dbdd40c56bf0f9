"""Makes the small stores of a format that every later build must read, and says what is in them.

    python -m tests.wdbx.stores.make [NAME...]

Run it once for a format, before it is released; what was released is never made again. What a store must hold is noted
as it is written, in `expected.json`, and not read back.
"""

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abi_jax.wdbx.database import Database
from abi_jax.wdbx.manifest import FORMAT_VERSION
from abi_jax.wdbx.storage.local import LocalStorage

HERE = Path(__file__).parent
KEY = bytes(range(32))  # of the encrypted store; it protects nothing
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
SCHEMA = {
    "text": "str",
    "count": "int",
    "part": "float",
    "right": "bool",
    "when": "time",
    "raw": "bytes",
    "words": "list[str]",
    "sizes": "list[int]",
}
FULL: dict[str, Any] = {
    "text": "Grüße, 文",
    "count": -(2**63),
    "part": 0.1,
    "right": False,
    "when": datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
    "raw": b"\x00\xff",
    "words": ["", "ü", "文字"],
    "sizes": [0, -1, 2**62],
}
# name -> dtype, metric, type of ids, ids
COLLECTIONS: dict[str, tuple[str, str, str, list[Any]]] = {
    "float32": ("float32", "cosine", "str", ["a", "ä", "文", "\U0001f600", "a b", "A", "zz" * 60]),
    "float16": ("float16", "l2", "int", [0, -1, 2**62, -(2**63), 7]),
    "bfloat16": ("bfloat16", "ip", "str", [f"row-{i}" for i in range(5)]),
    "int8": ("int8", "l2", "int", [3, 1, 2]),
}


def plain(value: Any) -> Any:
    """Metadata as JSON has it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


class Made:
    """A store that is being written, and what it holds at every version that is noted."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.now: dict[str, dict[str, Any]] = {}
        self.past: dict[int, dict[str, dict[str, Any]]] = {}
        self.db = self.open()

    def open(self) -> Database:
        return Database(LocalStorage(self.folder / "store"), background=False, **self.options)

    def note(self) -> None:
        self.past[self.db.version] = {name: dict(rows) for name, rows in self.now.items()}

    def upsert(self, name: str, ids: list[Any], first: int, about: dict[str, Any], bulk: bool = False) -> None:
        spec = self.db.collection(name).spec
        vectors = np.array([[first + i, 1, -i / 2 if spec.dtype != "int8" else -i] for i in range(len(ids))])
        columns = {field: [about.get(field)] * len(ids) for field, _ in spec.schema}
        if bulk:
            self.db.collection(name).import_({"id": ids, "vector": vectors.astype(spec.numpy_dtype), **columns})
        else:
            self.db.collection(name).upsert(ids, vectors.astype(spec.numpy_dtype), columns)
        said = {field: plain(value) for field, value in about.items()}
        for id_, vector in zip(ids, vectors.tolist(), strict=True):
            self.now[name][str(id_)] = [vector, said, self.db.version]
        self.note()

    def write(self) -> None:
        """Creates, writes, deletes, tags, imports, drops, seals; and leaves something in the log."""
        for name, (dtype, metric, ids, known) in COLLECTIONS.items():
            self.db.create_collection(name, 3, metric, dtype, SCHEMA, ids)
            self.now[name] = {}
            self.upsert(name, known, 1, FULL)
        self.db.create_collection("gone", 3)
        self.now["gone"] = {}
        self.note()
        self.db.seal()
        self.db.tag("first")
        self.tag = self.db.version - 1
        self.db.drop_collection("gone")
        del self.now["gone"]
        self.note()
        self.upsert("float32", ["ä", "new"], 20, {"text": "again"})
        self.db.collection("float32").delete(["a"])
        del self.now["float32"]["a"]
        self.note()
        self.upsert("int8", [2, 9], 30, {}, bulk=True)
        self.db.seal()
        self.db.close()
        self.db = self.open()
        self.upsert("float32", ["tail", "文"], 40, {"words": []})
        self.db.collection("float16").delete([7])
        del self.now["float16"]["7"]
        self.note()

    def write_columns(self) -> None:
        """Rows from before their collections got columns, and others: in segments, imported and in the log."""
        before = {field: SCHEMA[field] for field in ("text", "sizes")}
        few = {field: FULL[field] for field in before}
        for name in ("float32", "int8"):
            dtype, metric, ids, known = COLLECTIONS[name]
            self.db.create_collection(name, 3, metric, dtype, before if name == "float32" else {}, ids)
            self.now[name] = {}
            self.upsert(name, known, 1, few if name == "float32" else {})
        self.db.seal()
        self.db.tag("first")
        self.tag = self.db.version - 1
        self.db.collection("float32").delete(["a"])
        del self.now["float32"]["a"]
        self.note()
        self.upsert("float32", ["early"], 20, few)
        for name in ("float32", "int8"):
            there = dict(self.db.collection(name).spec.schema)
            self.db.collection(name).add_columns({field: kind for field, kind in SCHEMA.items() if field not in there})
            self.note()
        self.upsert("float32", ["ä"], 30, FULL)
        self.db.seal()
        self.upsert("int8", [2, 9], 30, FULL, bulk=True)
        self.upsert("float32", ["tail", "文"], 40, FULL)

    def finish(self) -> None:
        """Closes the store and writes what must be in it; of a plain one also a receipt and proofs."""
        receipt = self.db.receipt(SIGNER)
        said = {
            "past": self.past,
            "tag": self.tag,
            "link": self.db.link(),
            "public_key": receipt.public_key,
        }
        (self.folder / "receipt.json").write_text(receipt.text())
        if "key" not in self.options:
            c = self.db.collection("float32")
            for name, id_, at in (
                ("log", "文", None),
                ("segment", "ä", None),
                ("absent", "a", None),
                ("old", "a", "first"),
            ):
                (self.folder / f"proof-{name}.json").write_text(c.prove(id_, at, to=receipt).text())
        self.db.close()
        (self.folder / "expected.json").write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    """Makes all stores of this format anew, or those that are named."""
    if FORMAT_VERSION != 1:
        sys.exit("give the stores of another format folders of their own")
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "encrypted": {"key": KEY, "sign_with": SIGNER}, "columns": {}}
    for name, options in kinds.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = HERE / f"format-{FORMAT_VERSION}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        made = Made(folder, **options)
        (made.write_columns if name == "columns" else made.write)()
        made.finish()


if __name__ == "__main__":
    main()

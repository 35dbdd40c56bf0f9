"""What a proof consists of, and its form as JSON. docs/wdbx-format.md, "Proofs"."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import DamagedError, ProofError
from abi_jax.wdbx.witness import checked_json, read_checked

VERSION = 1
DOMAIN = "wdbx proof"
LARGEST = 256 << 20  # bytes of a proof that is read


@dataclass(frozen=True)
class Leaf:
    """A row of a segment: its place, what is hashed of it, and the digests beside its path, from the leaves up."""

    row: int
    message: bytes
    beside: tuple[bytes, ...]


@dataclass(frozen=True)
class Proof:
    """That collection `collection` has, at `version`, a row of `id`, or none; see `check.check_proof`.

    manifest: the text of the newest, "" for none; seal: the payload of the record that put it in force. heads: of every
    version behind the manifest's, the last of which is where the proof ends. records: payloads of what those versions,
    up to `version`, did to the collection. segments: by number, rows that are shown of them; deaths: by number, what
    the files of the array `deaths` hold. Both are empty where the records tell all about the id.
    """

    collection: int
    id: str | int
    version: int
    manifest: str
    seal: bytes
    heads: bytes
    records: Mapping[int, bytes] = field(default_factory=dict)
    segments: Mapping[int, tuple[Leaf, ...]] = field(default_factory=dict)
    deaths: Mapping[int, bytes] = field(default_factory=dict)

    def text(self) -> str:
        """The proof as a JSON file; bytes are in base64."""
        said = {"format": DOMAIN, "format_version": VERSION} | _plain(asdict(self))
        return checked_json(DOMAIN, said).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def parse_proof(text: str) -> Proof:
    """Reads what `Proof.text` wrote. Raises `ProofError` where it is anything else, by as little as a space."""
    try:
        said = read_checked(DOMAIN, "the proof", text.encode())
        if said["format"] != DOMAIN or said["format_version"] != VERSION:
            raise ProofError(f"the proof is of format {said['format_version']!r}; expected {VERSION}")
        proof = Proof(
            said["collection"],
            said["id"],
            said["version"],
            said["manifest"],
            b64decode(said["seal"]),
            b64decode(said["heads"]),
            {int(version): b64decode(payload) for version, payload in said["records"].items()},
            {int(number): tuple(map(_leaf, leaves)) for number, leaves in said["segments"].items()},
            {int(number): b64decode(data) for number, data in said["deaths"].items()},
        )
        whole = proof.text() == text and _typed(proof)
    except (DamagedError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ProofError):
            raise
        whole = False
    if not whole:
        raise ProofError("the proof is damaged, or not a proof; expected the JSON that prove() made")
    return proof


def _leaf(said: Mapping[str, Any]) -> Leaf:
    return Leaf(said["row"], b64decode(said["message"]), tuple(map(b64decode, said["beside"])))


def _typed(proof: Proof) -> bool:
    numbers = [proof.collection, proof.version, *(leaf.row for each in proof.segments.values() for leaf in each)]
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in numbers)
    return whole and isinstance(proof.id, str | int) and not isinstance(proof.id, bool)


def read_proof(path: Path) -> Proof:
    """Reads a proof's file. Raises `InputError` where it cannot be read, `ProofError` where it is no proof."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a proof has at most {LARGEST}")
        return parse_proof(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a proof") from None
    except UnicodeDecodeError:
        raise ProofError(f"{path} is not a proof; expected the JSON that prove() made") from None

"""Manifests: what is sealed, up to one version. docs/wdbx-format.md, "Manifests"."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from abi_jax.lineage_digest import HASH, canonical, sha256
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.names import hide, show
from abi_jax.wdbx.errors import DamagedError, WdbxError
from abi_jax.wdbx.spec import CollectionSpec, read_spec, unknown_spec

FORMAT_VERSION = 1
FOLDER = "manifests"


@dataclass(frozen=True)
class CollectionEntry:
    """What a manifest says of a collection. dropped, erased: the version, 0 while it is there. retention: seconds."""

    spec: CollectionSpec
    created: int
    horizon: int
    dropped: int = 0
    erased: int = 0
    retention: float | None = None

    @property
    def gone(self) -> bool:
        """Whether nothing of it can be read any more, at any version."""
        return self.erased > 0 or 0 < self.dropped <= self.horizon

    def said(self) -> dict[str, Any]:
        """What the file says; settings that nobody made are left out."""
        made = asdict(self) | {"spec": self.spec.to_json()}
        return {name: value for name, value in made.items() if name != "retention" or value is not None}


@dataclass(frozen=True)
class SegmentEntry:
    """What a manifest says of a step. first, last: the versions of births and deaths in it.

    content: the root over its rows; files: SHA-256 of every file of the step, by its path. deaths: how many deaths of
    rows it tells. columns: how many of its collection's its rows have, the first ones; None for all.
    """

    collection: int
    rows: int
    first: int
    last: int
    content: str
    files: Mapping[str, str]
    deaths: int = 0
    columns: int | None = None

    def said(self) -> dict[str, Any]:
        """What the file says; columns where some are lacking."""
        return {name: value for name, value in asdict(self).items() if name != "columns" or value is not None}

    def of_columns(self, columns: int, now: int) -> "SegmentEntry":
        """The same in a manifest whose collection has `now` columns; in the one it is from it had `columns`."""
        return replace(self, columns=columns) if self.columns is None and columns != now else self

    def spec(self, of: CollectionSpec) -> CollectionSpec:
        """The collection with the columns that the rows have."""
        return of if self.columns is None else replace(of, schema=of.schema[: self.columns])


@dataclass(frozen=True)
class IndexEntry:
    """What a manifest says of an index. segment: whose rows it is of. files: SHA-256 of every file, by its path."""

    segment: int
    files: Mapping[str, str]


@dataclass(frozen=True)
class HistoryEntry:
    """What a manifest says of a file of heads."""

    first: int
    last: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """Everything up to `version`. `previous`: version and hash of the manifest before, None for the first.

    parents: what versions said of models that the store stands on. indexes: what was made of segments, and can be made
    again. keyed: of an encrypted store, the version from which on records of sealings have codes (`seal_codes.py`);
    None for one that was sealed before there were any.
    """

    store: str
    version: int
    time: int
    link: str
    previous: tuple[int, str] | None = None
    collections: Mapping[int, CollectionEntry] = field(default_factory=dict)
    segments: Mapping[int, SegmentEntry] = field(default_factory=dict)
    history: Mapping[str, HistoryEntry] = field(default_factory=dict)
    tags: Mapping[str, int] = field(default_factory=dict)
    parents: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    indexes: Mapping[int, IndexEntry] = field(default_factory=dict)
    keyed: int | None = None

    def encode(self, ring: Keyring | None) -> bytes:
        """The bytes of the file; with data keys, what it says in words is sealed."""
        said = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "collections": {str(number): each.said() for number, each in self.collections.items()},
            "segments": {str(number): each.said() for number, each in self.segments.items()},
            "parents": {str(version): list(each) for version, each in self.parents.items()},
            "indexes": {str(number): asdict(each) for number, each in self.indexes.items()},
        }
        if not self.indexes:  # as manifests were before there were any
            del said["indexes"]
        if self.keyed is None:
            del said["keyed"]
        return canonical(said if ring is None else hide(ring, said)) + b"\n"


def manifest_name(version: int, digest: bytes) -> str:
    """The file of a manifest: two that seal up to the same version differ in it, so neither takes the other's place."""
    return f"{FOLDER}/{version:020d}-{digest.hex()[:16]}.json"


@dataclass(frozen=True)
class Sealed:
    """What is in force: a manifest and its hash; None and zeros for none."""

    manifest: Manifest | None = None
    digest: bytes = bytes(HASH)

    @property
    def name(self) -> str:
        """The manifest's file; "" for none."""
        return "" if self.manifest is None else manifest_name(self.manifest.version, self.digest)


def manifest_hash(data: bytes) -> bytes:
    """The hash that names the content of a manifest's file."""
    return sha256("wdbx manifest", data)


def check_format(said: Mapping[str, Any], name: str) -> None:
    """Raises `WdbxError` where a file is of a newer format."""
    found = said.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise WdbxError(
            f"{name} is of WDBX format {found!r}; this abi-jax reads formats up to {FORMAT_VERSION}: update it"
        )


def parse_manifest(
    name: str, data: bytes, ring: Keyring | None = None, erased: frozenset[int] = frozenset()
) -> Manifest:
    """Reads a manifest's file. Raises `DamagedError` where it is none, `WdbxError` where it is of a newer format.

    ring: the data keys of an encrypted store; without them, and of those that are `erased`, collections have no names.
    """
    try:
        said: dict[str, Any] = json.loads(data)
        check_format(said, name)
        if ring is not None and "sealed" not in said:
            raise DamagedError(f"{name} is not encrypted, in a store that is")
        if "sealed" in said:
            said = show(ring, name, said, erased, lambda number: unknown_spec(number).to_json())
        previous = said["previous"]
        return Manifest(
            said["store"],
            said["version"],
            said["time"],
            said["link"],
            None if previous is None else (previous[0], previous[1]),
            {int(n): CollectionEntry(**e | {"spec": read_spec(e["spec"])}) for n, e in said["collections"].items()},
            {int(n): SegmentEntry(**e) for n, e in said["segments"].items()},
            {n: HistoryEntry(**e) for n, e in said["history"].items()},
            said["tags"],
            {int(version): links for version, links in said["parents"].items()},
            {int(n): IndexEntry(**e) for n, e in said.get("indexes", {}).items()},
            said.get("keyed"),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, WdbxError):
            raise
        raise DamagedError(f"{name} is not a manifest; see abi wdbx verify") from None

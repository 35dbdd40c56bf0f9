"""What people ask of a store: collections by name, versions, what was done and whether it still stands."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.lineage import Chain
from abi_jax.lineage_digest import canonical
from abi_jax.lineage_receipt import Receipt
from abi_jax.wdbx.collection import CollectionHandle
from abi_jax.wdbx.contents import Collection
from abi_jax.wdbx.crypto.master import KeySource, read_master
from abi_jax.wdbx.crypto.signatures import signing_key
from abi_jax.wdbx.encoder import Encoder, dimension
from abi_jax.wdbx.erase import erase_tenant, ring_of
from abi_jax.wdbx.errors import DamagedError, NoCollectionError
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.given import check_codes
from abi_jax.wdbx.history import read_history
from abi_jax.wdbx.load import ATTEMPTS, about_hash
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.model_links import model_parent
from abi_jax.wdbx.pins import Pin, held, hold
from abi_jax.wdbx.proof.form import Proof
from abi_jax.wdbx.proof.make import prove
from abi_jax.wdbx.receipt import make_receipt
from abi_jax.wdbx.snapshot import Snapshot
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec, check_text, make_spec, with_columns
from abi_jax.wdbx.stats import Stats, measure
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.place import open_storage, place_of
from abi_jax.wdbx.store import RETENTION, Store
from abi_jax.wdbx.transfer.backup import Copied, copy_store
from abi_jax.wdbx.verify import verify
from abi_jax.wdbx.versions import At
from abi_jax.wdbx.view import View

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from abi_jax.wdbx.search.mesh import MeshSearch


class Database(Store):
    """A store that is open, for writing (`mode="a"`, one at a time) or for reading (`mode="r"`, any number)."""

    def __init__(
        self,
        storage: Storage,
        mode: str = "a",
        retention: float = RETENTION,
        background: bool = True,
        encoder: Encoder | None = None,
        key: KeySource | None = None,
        sign_with: Ed25519PrivateKey | None = None,
        indexes: bool = True,
        damaged: str = "refuse",
        codes: str = "int8",
    ) -> None:
        """encoder: makes vectors of texts, for collections that are not given one of their own. Else as `Store`."""
        self.products = check_codes(codes) == "pq"
        self.mesh: MeshSearch | None = None
        self._encoder = encoder
        self._encoders: dict[int, Encoder] = {}
        super().__init__(storage, mode, retention, background, key, sign_with, indexes, damaged)

    def create_collection(
        self,
        name: str,
        dim: int | None = None,
        metric: str = "cosine",
        dtype: Any = "float32",
        schema: Mapping[str, Any] | None = None,
        ids: str = "str",
        encoder: Encoder | None = None,
        tenant: str = "",
    ) -> CollectionHandle:
        """Makes a collection.

        metric: "cosine", "l2" or "ip". dtype: "float32", "float16", "bfloat16" or "int8". schema: types of metadata by
        field: str, int, float, bool, "time", "bytes", "list[str]", "list[int]". ids: "str" or "int".
        encoder: makes vectors of texts, here and now; its `name` is remembered, and there is a field `document` for
        texts. `dim` is what it makes, where no other is said. tenant: whose data it is, of an encrypted store; see
        `erase_tenant`.
        """
        if encoder is not None:
            dim = dimension(encoder) if dim is None else dim
            schema = {**(schema or {}), DOCUMENT: "str"}
        spec = make_spec(name, dim, metric, dtype, ids, schema, getattr(encoder, "name", ""), tenant)
        if tenant and self.storage.ring is None:
            raise InputError(f"tenant {tenant!r}: {self.storage} is not encrypted, so that nobody's data can be erased")
        with self._changing:
            if name in self._contents.named():
                raise InputError(f"collection {name!r} is there already; expected another name")
            number = max(self._contents.collections, default=0) + 1
            self.commit(Kind.CREATE, number, 0, canonical(spec.to_json()), tenant)
        return self._handle(number, spec, encoder)

    def rotate(self, key: KeySource) -> None:
        """Wraps every data key with another master key, which opens the store from here on. Touches no data."""
        master = read_master(key)
        with self._writing().paused():
            ring_of(self.storage).rotate(master)

    def erase_tenant(self, tenant: str) -> int:
        """Takes all keys of a tenant away: what it wrote is noise from here on, in every copy of the files, too.

        Returns the version. Its collections are dropped, and can be read at no version. The chain still verifies.
        """
        commits = self._writing()
        with self._sealing, self._changing:
            return erase_tenant(ring_of(self.storage), self._contents, commits, self._seals, tenant)

    def add_columns(self, number: int, schema: Mapping[str, Any]) -> int:
        """Gives collection `number` more columns; see `CollectionHandle.add_columns`."""
        commits = self._writing()
        with self._sealing, commits.paused():
            before = self._contents.collections[number].spec
            after = with_columns(before, schema)
            added = [list(each) for each in after.schema[len(before.schema) :]]
            return self.commit(Kind.COLUMNS, number, 0, canonical({"columns": added}))[0]

    def spec(self, number: int) -> CollectionSpec | None:
        """What collection `number` is at the last version; None where nobody can tell any more, or yet."""
        found = self._contents.collections.get(number)
        return found.spec if found is not None and found.spec.known else None

    def drop_collection(self, name: str) -> None:
        """Takes a collection away; versions in which it was there can be read as long as they are kept."""
        with self._changing:
            self.commit(Kind.DROP, self._named(name).number, 0, b"")

    def collection(self, name: str, encoder: Encoder | None = None) -> CollectionHandle:
        """The collection of that name. encoder: makes vectors of texts for it from now on.

        Raises `NoCollectionError` where there is none.
        """
        found = self._named(name)
        return self._handle(found.number, found.spec, encoder)

    def _handle(self, number: int, spec: CollectionSpec, encoder: Encoder | None) -> CollectionHandle:
        if encoder is not None:
            self._encoders[number] = encoder
        return CollectionHandle(self, number, spec, self._encoders.get(number, self._encoder))

    def collections(self) -> list[str]:
        """Names of all collections."""
        return sorted(self._contents.named())

    def _named(self, name: str) -> Collection:
        found = self._contents.named()
        for number, why in self._contents.left_out.items():
            if name not in found and self._contents.collections[number].spec.name == name:
                raise DamagedError(f"collection {name!r} is left out: {why}")
        if name not in found:
            error = NoCollectionError(f"there is no collection {name!r}")
            error.add_note(f"{self.storage} has {', '.join(found) or 'none'}")
            raise error
        return found[name]

    def view(self, number: int, at: At = None) -> View:
        """Collection `number` at a version, a tag or a time (now)."""
        collection = self._contents.collections[number]
        version = self.resolve(at)
        rows = collection.rows  # before the horizon is looked at: sealing moves that, and then takes rows away
        if number in self._contents.left_out:
            raise DamagedError(f"collection {number} is left out: {self._contents.left_out[number]}")
        if collection.erased:
            raise InputError(f"collection {number} was erased at version {collection.erased}")
        if not self._has(collection, version):
            raise InputError(f"collection {collection.spec.name!r} was not there at version {version}")
        if 0 < collection.dropped <= collection.horizon:
            said = f"was dropped at version {collection.dropped}, and no version of it is kept any more"
            raise InputError(f"collection {collection.spec.name!r} {said}")
        if version < collection.horizon:
            raise InputError(f"version {version} is no longer kept; expected {collection.horizon} or later")
        made_for = (version, rows.tail.count, self.mesh)
        view: View | None = rows.views.get(made_for)
        if view is None:
            rows.views.clear()
            view = View(rows.tail.spec, version, rows.segments, rows.tail, *made_for[1:], self.products)
            rows.views[made_for] = view
        return view

    def views(self, at: At = None) -> dict[str, View]:
        """All collections that were there at a version and can still be read, by name."""
        version = self.resolve(at)
        made = {}
        for each in list(self._contents.collections.values()):
            if self._has(each, version):
                with contextlib.suppress(InputError):  # it is no longer kept
                    made[each.spec.name] = self.view(each.number, version)
        return made

    def _has(self, collection: Collection, version: int) -> bool:
        """Whether a collection was there at a version, and has not been erased since."""
        there = collection.created <= version and not (collection.dropped and version >= collection.dropped)
        return there and not collection.erased

    def snapshot(self) -> Snapshot:
        """Everything as it is now, for as long as it is wanted: see `at`."""
        return self.at()

    def at(self, version: At = None) -> Snapshot:
        """Everything as it was at a version, a tag or a time. Readable until it is closed."""
        found = self.resolve(version)
        pin = hold(self.storage, Pin(found, self._sealed.name))
        try:
            return Snapshot(found, self.views(found), pin)
        except BaseException:
            if pin is not None:
                pin.release()
            raise

    def tag(self, name: str, version: At = None) -> None:
        """Gives a version (the last) a name, by which it is kept. Raises `InputError` where it no longer is."""
        if not isinstance(name, str) or not name:
            raise InputError(f"tag {name!r}: expected a text")
        check_text(name, f"tag {name!r}")
        waiting = contextlib.nullcontext() if version is None else self._sealing  # which may take the version away
        with waiting, self._writing().paused():
            found = self.resolve(version)
            for each in list(self._contents.collections.values()):
                if self._has(each, found) and found < each.horizon:
                    raise InputError(
                        f"version {found} of collection {each.spec.name!r} is no longer kept; "
                        f"expected {each.horizon} or later"
                    )
            self.commit(Kind.TAG, 0, 0, canonical({"name": name, "version": found}))

    def untag(self, name: str) -> int:
        """Takes a tag away; what it alone kept goes when a segment is written anew. Returns the version that does.

        Raises `InputError` where there is no such tag.
        """
        with self._writing().paused():
            if name not in self._contents.tags:
                there = ", ".join(sorted(self._contents.tags)) or "none"
                raise InputError(f"there is no tag {name!r} in {self.storage}; it has {there}")
            return self.commit(Kind.TAG, 0, 0, canonical({"name": name, "version": None}))[0]

    def log(self) -> Iterator[dict[str, Any]]:
        """All versions, newest first: number, time, kind, collection, rows, link; `parents` of one that has any."""
        sealed = read_history(self.storage, self._sealed.manifest, newest_first=True)
        for head in (*reversed(self._contents.heads), *sealed):
            collection = self._contents.collections.get(head.collection)
            parents = self._contents.parents.get(head.version)
            yield {
                "version": head.version,
                "time": datetime.fromtimestamp(head.time / 1e6, UTC).isoformat(),
                "kind": head.kind.name.lower(),
                "collection": collection.spec.name if collection else None,
                "rows": head.rows,
                "link": head.link.hex(),
            } | ({"parents": parents} if parents else {})

    def verify(self, receipt: Receipt | None = None, public_key: str = "") -> list[Finding]:
        """Everything that is wrong with what is stored; nothing, where it is as it was written.

        receipt: finds a store that was set back to an older state since, or is another. public_key, hexadecimal: who
        must have signed the receipt.
        """
        self.check_open()
        return verify(self.storage, receipt=receipt, public_key=public_key)

    @property
    def left_out(self) -> tuple[Finding, ...]:
        """Of a store that was opened with damaged="ignore": what is damaged, and so not there."""
        self.check_open()
        return self._loaded.findings

    def link(self, at: At = None) -> str:
        """The link of a version, a tag or a time (now): 64 digits, which a model's chain may name as a parent."""
        return self.head(self.resolve(at)).link.hex()

    def prove(self, number: int, id_: str | int, at: At = None, to: Receipt | None = None) -> Proof:
        """A proof of what collection `number` has of an id; see `CollectionHandle.prove`."""
        version = self.resolve(at)
        if self.left_out:
            raise DamagedError(f"{self.storage} is damaged, and shows nothing for certain: {self.left_out[0]}")
        for _ in range(ATTEMPTS):
            with contextlib.suppress(DamagedError), self._sealing:
                return prove(self, number, id_, version, to)
            self.refresh()  # its log was sealed by another process
        return prove(self, number, id_, version, to)

    def receipt(self, sign_with: Ed25519PrivateKey | Path | str | None = None, at: At = None) -> Receipt:
        """A statement of what the store is at a version (now), to be kept elsewhere. See `verify`.

        sign_with: an Ed25519 key, or the file of one in PEM.
        """
        head = self.head(self.resolve(at))
        return make_receipt(about_hash(self.storage), head.version, head.link.hex(), head.time, sign_with)

    def link_model(self, source: Chain | Path | str, step: int | None = None) -> int:
        """Says which checkpoint of a model the store stands on from here; the version that does.

        source: a model directory, or its chain. step: of the checkpoint (the last link's).
        """
        payload = canonical({"parents": [model_parent(source, step)]})
        return self.commit(Kind.PARENTS, 0, 0, payload)[0]

    def backup(self, path: str | Path, version: At = None, progress: bool = False) -> Copied:
        """Copies the store, up to a version that is not sealed yet or the last, to a path or URL; see `copy_store`.

        Commits go on meanwhile. Where there is an older backup, only what is new is copied. The backup is a store: it
        can be opened, verified, and restored with `wdbx.restore`. progress: a bar on standard error.
        """
        there = place_of(path)
        for attempt in range(1, ATTEMPTS + 1):
            with (
                self._sealing,
                self.at(version) as pinned,
                tqdm(unit="B", unit_scale=True, disable=not progress, desc="backup") as bar,
            ):
                try:
                    return copy_store(self.storage, there, pinned.version, bar.update)
                except InputError:
                    if self.mode != "r" or attempt == ATTEMPTS or self.refresh() == pinned.version:
                        raise  # else its log was sealed by another process
        raise AssertionError

    def stats(self) -> Stats:
        """Rows, bytes, versions, and who reads which."""
        sealed = self._sealed.manifest.version if self._sealed.manifest else 0
        unsealed = 0 if self._commits is None else self._unsealed()
        pins = [pin.version for pin in held(self.storage) if not pin.everything]
        return measure(self.storage, self._contents, sealed, unsealed, pins, self._sealing.locked())

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(
    path: str | Path,
    mode: str = "a",
    retention: float = RETENTION,
    encoder: Encoder | None = None,
    *,
    key: KeySource | None = None,
    sign_with: Ed25519PrivateKey | str | Path | None = None,
    mesh: "Mesh | MeshSearch | None" = None,
    indexes: bool = True,
    damaged: str = "refuse",
    codes: str = "int8",
) -> Database:
    """Opens the store at `path`, and makes it where there is none and `mode` is "a".

    retention: seconds for which every version can be read; later ones that are tagged or being read stay longer.
    encoder: makes vectors of texts (`encoder.py`), for collections that are not given one of their own.
    key: the master key of an encrypted store: 32 bytes, the path of a file that holds them, `env:NAME`, or a key
    service (`KeyService`). A store that is made with a key is encrypted. sign_with: an Ed25519 private key, or the path
    of one in PEM, that signs every version; a store that is made with one takes no others. mesh: devices that hold the
    vectors of all collections and search them; None: this host does. indexes: whether who writes makes inverted lists
    of large segments, in the background, and stores them for queries with a recall below 1. damaged: "ignore", with
    mode "r", opens what is whole of a damaged store, up to the first version that is damaged, without segments that
    are; `Database.left_out` tells them. It reads every file first. codes: "pq", queries with a recall below 1 look at
    product codes of large segments, a sixth to an eighth of the memory of "int8", here or on the devices of a mesh; see
    docs/architecture.md, "Search".

    Raises `NoKeyError` where a key is missing or not the store's; then nothing has changed.
    """
    signer = None if sign_with is None else signing_key(sign_with)
    searched = None
    if mesh is not None:  # before the store is locked, since it may be none
        from abi_jax.wdbx.on_mesh import on_mesh  # imported where it is asked for, since it takes a while

        searched = on_mesh(mesh)
    storage = open_storage(path)
    made = Database(
        storage,
        mode,
        retention,
        encoder=encoder,
        key=key,
        sign_with=signer,
        indexes=indexes,
        damaged=damaged,
        codes=codes,
    )
    made.mesh = searched
    return made

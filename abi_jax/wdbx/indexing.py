"""Lists of large segments, made by who writes to the store and stored beside these. docs/wdbx-format.md, "Indexes"."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.contents import Contents
from abi_jax.wdbx.in_force import put_in_force
from abi_jax.wdbx.log.commit import Commits
from abi_jax.wdbx.manifest import IndexEntry, Manifest, Sealed
from abi_jax.wdbx.search.engine import compiled
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.stored_lists import FOLDER, StoredLists, index_name, lists_to_store, products_to_store

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.mesh import MeshSearch
    from abi_jax.wdbx.search.products import ProductIndex


def lacking(contents: Contents, number: int | None = None, products: bool = False) -> list[Segment]:
    """Segments that are worth lists and have none stored that are whole. number: of one collection.

    products: those that have no product codes, too.
    """
    if not compiled():
        return []
    collections = [each for each in list(contents.collections.values()) if number in (None, each.number)]
    segments = [segment for each in collections if not each.dropped for segment in each.segments]
    return [each for each in segments if each.worth_lists and not _stored(each, products)]


def _stored(segment: Segment, products: bool) -> bool:
    stored = segment.stored_lists
    return stored is not None and (stored.products if products else stored.lists) is not None


def made_lists(segment: Segment, products: bool, mesh: "MeshSearch | None") -> "Lists | ProductIndex | None":
    """Lists of a segment, and product codes where these are wanted; None where they could not be made.

    mesh: makes lists, where it does and need not be asked by several processes.
    """
    if products:
        return segment.make_products()
    if mesh is None or not mesh.makes_lists or not mesh.wants_lists(segment.spec.metric, segment.vectors):
        return segment.make_lists()
    return segment.make_lists(partial(mesh.make_lists, segment.spec, segment, segment.spec.metric))


def store_lists(
    storage: Storage,
    contents: Contents,
    commits: Commits,
    before: Sealed,
    segment: Segment,
    lists: "Lists | ProductIndex",
    in_force: Callable[[Sealed], None],
) -> bool:
    """Stores the lists of a segment, and product codes, in a new version; False where its rows went meanwhile.

    Nobody may seal meanwhile. in_force: told what is in force, as soon as it is. Raises what the storage raises; then
    nothing has changed.
    """
    manifest = before.manifest
    if manifest is None or segment.number not in manifest.segments or _erased_since(manifest, contents):
        return False
    if contents.collections[manifest.segments[segment.number].collection].dropped:
        return False
    number = max([storage.next_step(), *(int(name) + 1 for name in storage.names(FOLDER))])
    name = index_name(number)
    entry = IndexEntry(segment.number, storage.save(name, _arrays(lists), segment.spec.tenant))
    others = {n: each for n, each in manifest.indexes.items() if each.segment != segment.number}
    manifest = replace(manifest, indexes={**others, number: entry})

    def then() -> None:
        segment.stored_lists = StoredLists(storage, number, entry.files, segment.spec.metric, len(segment))

    put_in_force(storage, commits, manifest, before, "index", in_force, then)
    return True


def _arrays(lists: "Lists | ProductIndex") -> dict[str, np.ndarray]:
    from abi_jax.wdbx.search.products import ProductIndex

    return products_to_store(lists) if isinstance(lists, ProductIndex) else lists_to_store(lists)


def _erased_since(manifest: Manifest, contents: Contents) -> bool:
    """Whether a manifest made of this one would tell again what was erased."""
    erased = {number for number, each in contents.collections.items() if each.erased}
    return any(number in erased and not each.erased for number, each in manifest.collections.items())

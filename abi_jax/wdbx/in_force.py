"""Putting a manifest in force: its file, then the record that names it. docs/wdbx-format.md, "Manifests"."""

from collections.abc import Callable
from dataclasses import replace

from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.log.commit import Commits, Draft
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.manifest import Manifest, Sealed, manifest_hash, manifest_name
from abi_jax.wdbx.storage.base import Storage

WHAT = {"seal": "sealing", "compact": "sealing", "import": "an import", "index": "indexing"}  # by why it is sealed


def put_in_force(
    storage: Storage,
    commits: Commits,
    manifest: Manifest,
    before: Sealed,
    why: str,
    told: Callable[[Sealed], None],
    then: Callable[[], None] = lambda: None,
    collection: int = 0,
    rows: int = 0,
) -> None:
    """Puts a manifest in force instead of the one before, with a version that says why. Nobody may seal meanwhile.

    told: what is in force, as soon as it is. then: what becomes of what is in memory, before anybody commits again.
    collection, rows: where rows are imported, and how many. Raises what the storage raises; then nothing has changed.
    """
    previous = None if before.manifest is None else (before.manifest.version, before.digest.hex())
    manifest = replace(manifest, previous=previous, keyed=_keyed(storage, commits, before))
    data = manifest.encode(storage.ring)
    made = Sealed(manifest, manifest_hash(data))
    storage.put(manifest_name(manifest.version, made.digest), data)
    said = {"version": manifest.version, "hash": made.digest.hex(), "why": why}
    with commits.paused(), commits.must_finish(WHAT[why]):
        commits.commit(Draft(Kind.SEAL, collection, rows, canonical(said)))
        told(made)
        then()


def _keyed(storage: Storage, commits: Commits, before: Sealed) -> int | None:
    """From which version on records of sealings have codes; what was sealed before there were any has none."""
    if storage.ring is None:
        return None
    if before.manifest is None:
        return 1
    return before.manifest.keyed or commits.position.version + 1

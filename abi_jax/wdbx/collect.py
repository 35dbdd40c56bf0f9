"""Garbage: what no manifest in force names and no reader needs."""

from itertools import pairwise

from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.manifest import FOLDER, Sealed, manifest_name, version_of
from abi_jax.wdbx.storage.local import LocalStorage


def drop_logs(storage: LocalStorage, version: int) -> None:
    """Deletes log files that hold nothing behind `version`."""
    names = storage.names("log")
    for name, following in pairwise(names):
        if int(following.split("-")[0]) <= version + 1:
            storage.delete(f"log/{name}")


def collect(storage: LocalStorage, sealed: Sealed, pinned: set[int]) -> None:
    """Deletes what nothing needs: unfinished files; steps and history that no manifest in force or pinned names.

    Kept, too, is the manifest before.

    pinned: versions of manifests that readers stand on.
    """
    manifest = sealed.manifest
    for name in storage.partial():
        storage.delete(name)
    if manifest is None:
        steps: set[int] = set()
        history: set[str] = set()
    else:
        drop_logs(storage, manifest.version)
        steps, history = set(manifest.segments), set(manifest.history)
    there = [f"{FOLDER}/{name}" for name in storage.names(FOLDER)]
    kept = {name for name in there if version_of(name) in pinned}
    if manifest is not None:
        kept.add(manifest_name(manifest.version, sealed.digest))
        if manifest.previous is not None:
            kept.add(manifest_name(manifest.previous[0], bytes.fromhex(manifest.previous[1])))
    for name in there:
        if name not in kept:
            storage.delete(name)
    if pinned:
        return  # steps of a manifest that is read stay until it no longer is
    for name in storage.names("segments"):
        if int(name) not in steps and int(name) not in storage.reserved:
            storage.delete(step_name(int(name)))
    for name in storage.names("history"):
        if name not in history:
            storage.delete(f"history/{name}")

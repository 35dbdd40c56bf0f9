"""Garbage: what no manifest in force names and no reader needs."""

from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.manifest import Manifest, manifest_name
from abi_jax.wdbx.storage.local import LocalStorage

KEPT_MANIFESTS = 2


def drop_logs(storage: LocalStorage, version: int) -> None:
    """Deletes log files that hold nothing behind `version`."""
    names = storage.names("log")
    for name, following in zip(names, names[1:], strict=False):
        if int(following.split("-")[0]) <= version + 1:
            storage.delete(f"log/{name}")


def collect(storage: LocalStorage, manifest: Manifest | None, pinned: set[int]) -> None:
    """Deletes what nothing needs: unfinished files, steps and history that neither `manifest` nor a pinned one names.

    pinned: versions of manifests that readers stand on.
    """
    for name in storage.partial():
        storage.delete(name)
    if manifest is None:
        steps: set[int] = set()
        history: set[str] = set()
    else:
        drop_logs(storage, manifest.version)
        steps, history = set(manifest.segments), set(manifest.history)
    versions = [int(name.split(".")[0]) for name in storage.names("manifests")]
    in_force = [version for version in versions if manifest is not None and version <= manifest.version]
    kept = {*in_force[-KEPT_MANIFESTS:], *pinned}
    for version in versions:
        if version not in kept:
            storage.delete(manifest_name(version))
    if pinned:
        return  # steps of a manifest that is read stay until it no longer is
    for name in storage.names("segments"):
        if int(name) not in steps:
            storage.delete(step_name(int(name)))
    for name in storage.names("history"):
        if name not in history:
            storage.delete(f"history/{name}")

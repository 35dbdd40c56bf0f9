"""Garbage: what no manifest in force names and no reader needs."""

from collections.abc import Sequence
from time import monotonic, sleep

from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.log.file import begun
from abi_jax.wdbx.log.order import ends
from abi_jax.wdbx.manifest import FOLDER, Sealed, manifest_name, parse_manifest
from abi_jax.wdbx.pins import Pin, held
from abi_jax.wdbx.storage.base import FOLDERS, Storage
from abi_jax.wdbx.stored_lists import FOLDER as INDEXES
from abi_jax.wdbx.stored_lists import index_name

PATIENCE = 0.5  # seconds


def drop_logs(storage: Storage, version: int) -> None:
    """Deletes log files that hold nothing behind `version`."""
    names = sorted((name for name in storage.names("log") if begun(name)[0]), key=begun)
    for name, end in zip(names, ends(list(map(begun, names))), strict=True):
        if end is not None and end <= version + 1:
            storage.delete(f"log/{name}")


def collect(storage: Storage, sealed: Sealed, pins: Sequence[Pin]) -> None:
    """Deletes what nothing needs: unfinished files; manifests, steps and history that are neither in force nor pinned.

    Kept, too, is the manifest before, without what only it names.
    """
    for name in storage.partial():
        storage.delete(name)
    if sealed.manifest is not None:
        drop_logs(storage, sealed.manifest.version)
    if any(pin.everything for pin in pins):
        return
    needed = [] if sealed.manifest is None else [sealed.manifest]
    for name in {pin.manifest for pin in pins} - {sealed.name, ""}:
        data = storage.read(name)
        if data is None:
            return  # what it named cannot be told from what nothing names
        needed.append(parse_manifest(name, data))
    names = {*_newest(sealed), *(pin.manifest for pin in pins)}
    steps = {step_name(number) for manifest in needed for number in manifest.segments}
    indexes = {index_name(number) for manifest in needed for number in manifest.indexes}
    reserved = {step_name(number) for number in storage.reserved}
    history = {f"history/{name}" for manifest in needed for name in manifest.history}
    for folder, kept in ((FOLDER, names), ("segments", steps), (INDEXES, indexes), ("history", history)):
        for name in storage.names(folder):
            if f"{folder}/{name}" not in kept | reserved:
                storage.delete(f"{folder}/{name}")
    if storage.ring is not None:
        there = [f"{folder}/{name}" for folder in FOLDERS for name in storage.names(folder)]
        unused = storage.ring.unused(lambda of: any(name.startswith(of) for name in there))
        if unused:
            storage.settle()  # a file that came back after a power cut could not be read without its key
            storage.ring.drop(unused)


def _newest(sealed: Sealed) -> set[str]:
    """The files of the manifest in force and of the one before it."""
    if sealed.manifest is None or sealed.manifest.previous is None:
        return {sealed.name}
    version, digest = sealed.manifest.previous
    return {sealed.name, manifest_name(version, bytes.fromhex(digest))}


def collect_at_close(storage: Storage, sealed: Sealed) -> list[str]:
    """Deletes what nothing needs; the manifests that are left because readers stand on them.

    A reader that is still finding out what it will stand on is waited for, a little.
    """
    until = monotonic() + PATIENCE
    pins = held(storage)
    while any(pin.everything for pin in pins) and monotonic() < until:
        sleep(PATIENCE / 20)
        pins = held(storage)
    collect(storage, sealed, pins)
    everything = any(pin.everything for pin in pins)
    there = {f"{FOLDER}/{name}" for name in storage.names(FOLDER)}
    return sorted((there if everything else there & {pin.manifest for pin in pins}) - {sealed.name})

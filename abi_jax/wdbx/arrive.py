"""Imports take effect: steps that were written as rows streamed in become part of the store, all with one record.

docs/wdbx-format.md, "Operations", import.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from abi_jax.wdbx.contents import Arrival, Contents
from abi_jax.wdbx.digest import bound_root
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.in_force import put_in_force
from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.log.commit import Commits
from abi_jax.wdbx.manifest import Sealed, SegmentEntry
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.segment_digest import rows_root, segment_content
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.stored_codes import codes_to_store
from abi_jax.wdbx.tail import ALIVE

ROWS_AT_ONCE = 1 << 17  # ids that are looked up together


@dataclass(frozen=True)
class Written:
    """A step that no manifest names yet. segment: its rows, as if born at 0. root: the tree over them, not bound."""

    segment: Segment
    arrays: Mapping[str, np.ndarray]
    root: bytes
    files: Mapping[str, str]


def write_rows(storage: Storage, number: int, spec: CollectionSpec, arrays: Mapping[str, np.ndarray]) -> Written:
    """Writes a step of rows, whose version is not known yet."""
    plain = storage.ring is None  # digests of encrypted rows have salts, which are made as they are written
    with ThreadPoolExecutor(1, thread_name_prefix="wdbx-digests") as pool:
        early = pool.submit(rows_root, Segment(number, spec, 0, arrays)) if plain else None
        files = _save(storage, number, arrays, spec)
    stored = storage.load(step_name(number), files)
    segment = Segment(number, spec, 0, stored)
    return Written(segment, stored, rows_root(segment) if early is None else early.result(), files)


def _save(storage: Storage, number: int, arrays: Mapping[str, np.ndarray], spec: CollectionSpec) -> dict[str, str]:
    more = {} if storage.ring is None else codes_to_store(spec, arrays)
    return storage.save(step_name(number), {**arrays, **more}, spec.tenant)


def shared_rows(of: Segment, with_: Segment) -> np.ndarray:
    """The rows of one segment, the last ones of their ids, whose ids another has, too, int64 `[m]`."""
    found = []
    for start in range(0, len(with_), ROWS_AT_ONCE):
        rows = of.ids.find(with_.ids.column(start, min(start + ROWS_AT_ONCE, len(with_))))
        found.append(rows[rows >= 0])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def arrive(
    storage: Storage,
    contents: Contents,
    commits: Commits,
    before: Sealed,
    number: int,
    steps: Sequence[Written],
    replaced: Mapping[int, np.ndarray],
    in_force: Callable[[Sealed], None],
) -> None:
    """Makes the rows of steps those of a new version of collection `number`.

    in_force: told what is in force, as soon as it is. replaced: rows of steps that later ones have again, by the
    number of the step. Nobody may seal meanwhile. Raises what the storage raises; then nothing has changed.
    """
    collection = contents.collections[number]
    deaths = dict(replaced)
    for segment in collection.segments:
        rows = np.concatenate([shared_rows(segment, step.segment) for step in steps])
        deaths[segment.number] = rows[segment.died[rows] == ALIVE]
    told = [np.stack([np.full(len(rows), n), rows, np.zeros(len(rows), int)], 1) for n, rows in deaths.items()]
    pairs = np.concatenate([np.zeros((0, 3), int), *told]).astype(np.uint64)
    husk: tuple[int, dict[str, str]] | None = None
    if len(pairs):
        husk = storage.next_step(reserve=True), {}
        husk = husk[0], _save(storage, husk[0], {"deaths": pairs}, collection.spec)
    try:
        with commits.paused():
            _commit(storage, contents, commits, before, number, steps, deaths, husk, in_force)
    finally:
        if husk is not None:
            storage.reserved.discard(husk[0])


def _commit(
    storage: Storage,
    contents: Contents,
    commits: Commits,
    before: Sealed,
    number: int,
    steps: Sequence[Written],
    deaths: dict[int, np.ndarray],
    husk: tuple[int, dict[str, str]] | None,
    in_force: Callable[[Sealed], None],
) -> None:
    collection = contents.collections[number]
    if collection.dropped:
        raise WdbxError(f"collection {collection.spec.name!r} was dropped while rows were imported into it")
    assert before.manifest is not None
    version = commits.position.version + 1
    entries = {}
    segments = tuple(Segment(step.segment.number, collection.spec, version, step.arrays) for step in steps)
    for step, segment in zip(steps, segments, strict=True):
        content = bound_root(step.root, len(segment), version).hex()
        entry = SegmentEntry(number, len(segment), version, version, content, step.files, deaths=0)
        entries[segment.number] = entry.of_columns(len(segment.stored_spec.schema), len(collection.spec.schema))
    if husk is not None:
        dead = sum(map(len, deaths.values()))
        entries[husk[0]] = SegmentEntry(number, 0, version, version, segment_content(None).hex(), husk[1], dead)
    manifest = replace(before.manifest, segments={**before.manifest.segments, **entries})
    rows = sum(map(len, segments))
    contents.arrivals[version] = Arrival(segments, deaths)
    try:
        put_in_force(storage, commits, manifest, before, "import", in_force, collection=number, rows=rows)
    finally:
        contents.arrivals.pop(version, None)

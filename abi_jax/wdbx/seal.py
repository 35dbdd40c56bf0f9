"""Sealing: the tail becomes a segment, its log is no longer needed, and a manifest says so. In the background.

Between the two moments in which commits pause, they go on: rows that are born meanwhile stay in the tail, deaths of
rows that are being sealed are carried over when the new segment takes their place. Small segments, and those of which
much can no longer be read, are merged with the tail on the way: there is no other compaction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from abi_jax.wdbx.contents import Collection, Contents, RowSet
from abi_jax.wdbx.history import add_history
from abi_jax.wdbx.in_force import put_in_force
from abi_jax.wdbx.load import step_name
from abi_jax.wdbx.log.commit import Commits, Position
from abi_jax.wdbx.log.file import LOG_HEAD, LogHead
from abi_jax.wdbx.log.record import Head, Kind
from abi_jax.wdbx.manifest import CollectionEntry, Manifest, Sealed, SegmentEntry
from abi_jax.wdbx.merge import Merged, Part, Source, crowded, kept, merge, parts
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.segment_digest import segment_content
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.stored_codes import codes_to_store
from abi_jax.wdbx.tail import ALIVE, Tail

MOST_HUSKS = 8  # steps of a collection that hold nothing but deaths


@dataclass(frozen=True)
class _Share:
    """What is sealed of a collection: a part of its rows, and deaths in others."""

    collection: Collection
    rows: RowSet
    part: Part
    deaths: tuple[tuple[int, int, int], ...]
    horizon: int

    @property
    def count(self) -> int:
        """Rows of the tail."""
        return self.part.stop - self.part.start

    @property
    def merged(self) -> tuple[Segment, ...]:
        """Segments whose rows are written anew."""
        return self.part.merged


@dataclass(frozen=True)
class _Step:
    """A step that was written: its entry, the new segment if it has rows, and where these were."""

    number: int
    entry: SegmentEntry
    share: _Share
    segment: Segment | None
    sources: tuple[Source, ...]
    merged: Merged | None


@dataclass(frozen=True)
class _Plan:
    """What is sealed, as it was while commits paused."""

    at: Position
    shares: list[_Share]
    heads: list[Head]
    tags: dict[str, int]
    parents: dict[int, list[dict[str, Any]]]
    collections: dict[int, CollectionEntry]


def seal(
    storage: Storage,
    store: bytes,
    contents: Contents,
    commits: Commits,
    before: Sealed,
    horizon: Callable[[Collection], int],
    in_force: Callable[[Sealed], None],
    everything: bool = False,
) -> None:
    """Seals all up to the version of now, if anything is new, or there are many segments to be merged.

    horizon: the first version of a collection that must stay readable; called while commits pause. in_force: told
    what is in force, as soon as it is. everything: makes one segment of each collection. Raises what the storage
    raises; then nothing has changed but that a log file may have been begun.
    """
    with commits.paused():
        if not (everything or is_new(contents, before) or is_crowded(contents)):
            return
        plan = _plan(contents, commits.position, horizon, everything)
        _roll(storage, store, commits, before)
    manifest, steps = _write(storage, store, plan, before)

    def then() -> None:
        for step in steps:
            _swap(step)
        for number, entry in plan.collections.items():
            if entry.gone:
                _let_go(contents.collections[number], entry.horizon)
        contents.heads = [head for head in contents.heads if head.version > manifest.version]

    put_in_force(storage, commits, manifest, before, "compact" if everything else "seal", in_force, then)


def is_new(contents: Contents, before: Sealed) -> bool:
    """Whether anything happened since the last sealing but that sealing."""
    sealed = 0 if before.manifest is None else before.manifest.version
    return any(head.kind is not Kind.SEAL for head in contents.heads if head.version > sealed)


def is_crowded(contents: Contents) -> bool:
    """Whether a collection has many segments of about one size, which sealing merges though nothing is new."""
    collections = [each for each in list(contents.collections.values()) if not each.dropped]
    return any(crowded(each.spec, each.segments) for each in collections)


def _plan(contents: Contents, at: Position, horizon: Callable[[Collection], int], everything: bool) -> _Plan:
    shares, collections = [], {}
    for each in contents.collections.values():
        since = max(each.horizon, horizon(each))
        entry = CollectionEntry(each.spec, each.created, since, each.dropped, each.erased, each.retention)
        if entry.gone:
            collections[each.number] = entry
            continue
        rows = each.rows
        segments = () if each.dropped else rows.segments
        for number, part in enumerate(parts(each.spec, rows.tail, segments, since, everything)):
            alone = everything and len(part.merged) == 1 and part.start == part.stop
            if alone and bool((part.merged[0].died > since).all()):
                part = replace(part, merged=())  # it is as it would be written
            share = _Share(each, rows, part, tuple(each.deaths) if number == 0 else (), since)
            if share.count or share.deaths or share.merged:
                shares.append(share)
        written = any(share.count or share.merged for share in shares if share.collection is each)
        collections[each.number] = entry if written else replace(entry, horizon=each.horizon)
    heads = [head for head in contents.heads if head.version <= at.version]
    return _Plan(at, shares, heads, dict(contents.tags), dict(contents.parents), collections)


def _roll(storage: Storage, store: bytes, commits: Commits, before: Sealed) -> None:
    """Begins a log file, so that all files before it hold nothing but what is being sealed."""
    at = commits.position
    sealed = 0 if before.manifest is None else before.manifest.version
    head = LogHead(store, at.epoch, at.version + 1, at.link, sealed, before.digest)
    name = f"log/{head.name}"
    there = storage.read(name) is not None
    try:
        if storage.put_new(name, head.encode()):
            commits.go_on_in(storage.append_to(name), LOG_HEAD.size, name)
    except BaseException as error:
        if not there and storage.read(name) is not None:  # what is written to the file before it would not count
            commits.give_up(f"{name} was begun and could not be gone on in: {error!r}")
        raise


def _write(storage: Storage, store: bytes, plan: _Plan, before: Sealed) -> tuple[Manifest, list[_Step]]:
    old = before.manifest
    husks = {number: _husks(old, number, plan.shares) for number in plan.collections}
    steps = [
        _write_step(storage, storage.next_step(), share, plan.at.version, bool(husks[share.collection.number]))
        for share in plan.shares
    ]
    history = add_history(storage, old.history if old else {}, plan.heads)
    gone = {each.number for share in plan.shares for each in share.merged}.union(*husks.values())
    there = {number for number, entry in plan.collections.items() if not entry.gone}
    segments = {
        number: entry.of_columns(_columns(old.collections, entry), _columns(plan.collections, entry))
        for number, entry in (old.segments.items() if old else ())
        if old is not None and number not in gone and entry.collection in there
    }
    indexes = {number: entry for number, entry in (old.indexes.items() if old else ()) if entry.segment in segments}
    manifest = Manifest(
        store.hex(),
        plan.at.version,
        plan.at.time,
        plan.at.link.hex(),
        collections=plan.collections,
        segments=segments | {step.number: step.entry for step in steps},
        history=history,
        tags=plan.tags,
        parents=plan.parents,
        indexes=indexes,
    )
    return manifest, steps


def _columns(collections: Mapping[int, CollectionEntry], step: SegmentEntry) -> int:
    return len(collections[step.collection].spec.schema)


def _husks(old: Manifest | None, number: int, shares: list[_Share]) -> list[int]:
    """Steps of a collection that hold nothing but deaths, where they are many, or its rows are all written anew."""
    own = [share for share in shares if share.collection.number == number]
    entries = old.segments.items() if old and own else ()
    found = [n for n, entry in entries if entry.collection == number and not entry.rows]
    anew = sum(len(share.merged) for share in own) == len(own[0].rows.segments) if own else False
    return found if len(found) > MOST_HUSKS or anew else []


def _write_step(storage: Storage, number: int, share: _Share, version: int, again: bool) -> _Step:
    """again: tells all deaths in other segments, since other steps that did go."""
    spec = share.collection.spec
    sources = (
        *(kept(each, 0, len(each), share.horizon) for each in share.merged),
        kept(share.rows.tail, share.part.start, share.part.stop, share.horizon),
    )
    merged = merge(spec, sources)
    arrays = dict(merged.arrays) if merged else {}
    deaths = _deaths(number, share, sources, merged, version, again)
    if len(deaths):
        arrays["deaths"] = deaths
    name, files = step_name(number), {}
    if arrays:
        more = {} if storage.ring is None else codes_to_store(spec, arrays)
        files = storage.save(name, arrays | more, spec.tenant)
    segment = Segment(number, spec, merged.first, storage.load(name, files)) if merged else None
    if segment is not None:
        for field in dict.fromkeys(field for each in sources for field in each.of.worded):
            segment.postings(field)  # found out here, in the background, and not by the next question
    rows = len(segment) if segment else 0
    first = merged.first if merged else version
    entry = SegmentEntry(
        share.collection.number, rows, first, version, segment_content(segment).hex(), files, len(deaths)
    )
    return _Step(number, entry, share, segment, sources, merged)


def _deaths(
    number: int, share: _Share, sources: tuple[Source, ...], merged: Merged | None, version: int, again: bool
) -> np.ndarray:
    """Deaths up to `version` that no step would tell otherwise: segment, row, version, uint64 `[m, 3]`."""
    gone = {each.number for each in share.merged}
    found = [np.array([death for death in share.deaths if death[0] not in gone], np.uint64).reshape(-1, 3)]
    if gone or again:  # steps go, and with them what they say of other segments
        others = [each for each in share.rows.segments if each.number not in gone]
        found += [_rows_of(each.number, each.died, version) for each in others]
    if merged is not None:
        found.append(_rows_of(number, _died(sources, merged), version))
    return np.unique(np.concatenate(found), axis=0)


def _rows_of(number: int, died: np.ndarray, version: int) -> np.ndarray:
    rows = np.flatnonzero(died <= version)
    return np.stack([np.full(len(rows), number), rows, died[rows]], axis=1).astype(np.uint64)


def _died(sources: tuple[Source, ...], merged: Merged) -> np.ndarray:
    """When each row of a new segment died, as its sources know it now."""
    made = np.full(len(merged.row), ALIVE, np.int64)
    for i, each in enumerate(sources):
        at = merged.source == i
        made[at] = each.of.died[merged.row[at]]
    return made


def _swap(step: _Step) -> None:
    """Puts a segment in the place of the rows that it took, with the deaths there were meanwhile."""
    share, collection = step.share, step.share.collection
    gone = {each.number for each in share.merged}
    collection.deaths = [death for death in collection.deaths[len(share.deaths) :] if death[0] not in gone]
    collection.horizon = share.horizon if share.count or gone else collection.horizon
    segments = [each for each in collection.segments if each.number not in gone]
    if step.segment is not None and step.merged is not None:
        died = _died(step.sources, step.merged)
        dead = np.flatnonzero(died != ALIVE)
        step.segment.die(dead, died[dead])
        since = np.flatnonzero((died > step.entry.last) & (died != ALIVE))
        collection.deaths += [(step.number, int(row), int(step.segment.died[row])) for row in since]
        segments.append(step.segment)
    tail: Tail = collection.tail.rest(share.count) if share.count else collection.tail
    collection.rows = RowSet(tuple(segments), tail)


def _let_go(collection: Collection, horizon: int) -> None:
    """Forgets the rows of a collection of which no version can be read any more."""
    collection.rows, collection.deaths = RowSet((), Tail(collection.spec)), []
    collection.horizon = max(collection.horizon, horizon)

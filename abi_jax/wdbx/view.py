"""A collection as it was at one version: what is read, looked up and searched. Nothing that is written changes it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError
from abi_jax.wdbx.filters import make_filter
from abi_jax.wdbx.rows import make_ids, make_vectors
from abi_jax.wdbx.search.engine import CodedPart, search
from abi_jax.wdbx.search.exact import best_first
from abi_jax.wdbx.search.flat import Found, Part, row_norms
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.tail import Tail


@dataclass(frozen=True)
class Row:
    """A row as it is told: id, vector `[dim]`, metadata without what is null, and the version it was born at."""

    id: str | int
    vector: np.ndarray
    metadata: dict[str, Any]
    born: int


@dataclass(frozen=True)
class Hit:
    """What a query found. score: cosine or inner product, best when high, or squared distance, best when low."""

    id: str | int
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class View:
    """Rows of `segments`, then the first `count` of `tail`, of which those are there that are alive at `version`."""

    spec: CollectionSpec
    version: int
    segments: tuple[Segment, ...]
    tail: Tail
    count: int

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(alive)) for alive in self._alive())

    def _alive(self) -> list[np.ndarray]:
        return [each.alive(self.version) for each in self.segments] + [self.tail.alive(self.count, self.version)]

    def get(self, ids: Iterable[str | int] | str | int) -> list[Row | None]:
        """The rows of ids, in their order; None where there is none."""
        wanted = make_ids(self.spec, [ids] if isinstance(ids, str | int) else ids, unique=False)
        listed = wanted if isinstance(wanted, list) else wanted.tolist()
        where = self._find(listed)
        return [None if at is None else self._row(*at) for at in where]

    def _find(self, ids: Sequence[Any]) -> list[tuple[int, int] | None]:
        """Of each id the part and the row in it."""
        found: list[tuple[int, int] | None] = [None] * len(ids)
        for part, segment in enumerate(self.segments):
            for i, row in enumerate(segment.find(ids, self.version).tolist()):
                found[i] = (part, row) if row >= 0 else found[i]
        for i, row in enumerate(self.tail.find(ids, self.count, self.version).tolist()):
            found[i] = (len(self.segments), row) if row >= 0 else found[i]
        return found

    def _row(self, part: int, row: int) -> Row:
        holder: Any = self._holder(part)
        return Row(
            self._ids(part, np.array([row]))[0],
            np.array(holder.vectors[row]),
            self._metadata(part, np.array([row]))[0],
            int(holder.born[row]),
        )

    def _holder(self, part: int) -> Segment | Tail:
        return self.segments[part] if part < len(self.segments) else self.tail

    def _ids(self, part: int, rows: np.ndarray) -> list[Any]:
        if part == len(self.segments):
            return [self.tail.ids[row] for row in rows.tolist()]
        ids = self.segments[part].ids.take(rows)
        return ids if isinstance(ids, list) else ids.tolist()

    def _table(self, part: int) -> pa.Table:
        return self.segments[part].metadata if part < len(self.segments) else self.tail.metadata(self.count)

    def _metadata(self, part: int, rows: np.ndarray) -> list[dict[str, Any]]:
        if not self.spec.schema:
            return [{} for _ in rows]
        listed = self._table(part).take(pa.array(rows)).to_pylist()
        return [{name: value for name, value in each.items() if value is not None} for each in listed]

    def query(
        self, vectors: Any, top_k: int = 10, where: Mapping[str, Any] | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """What `search` finds for one vector `[dim]`, or for each of several `[B, dim]`."""
        given = np.asarray(vectors)
        hits = self.search(given[None] if given.ndim == 1 else given, top_k, where)
        return hits[0] if given.ndim == 1 else hits

    def search(self, queries: Any, top_k: int = 10, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The `top_k` rows that score best for each query, best first; of equal scores, the lower id first. Exact.

        queries: `[B, dim]`. where: see `filters`.
        """
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise InputError(f"top_k {top_k!r}: expected a whole number from 1")
        checked = make_vectors(self._query_spec(), queries, "query")
        allowed = self._alive()
        if where is not None:
            passed = make_filter(self.spec, where)
            allowed = [
                alive & passed(self._table(part)) if alive.any() else alive for part, alive in enumerate(allowed)
            ]
        found = search(self._parts(allowed), self.spec.metric, checked, top_k)
        return [self._hits(each, top_k) for each in found]

    def _query_spec(self) -> CollectionSpec:
        return CollectionSpec(self.spec.name, self.spec.dim, self.spec.metric, "float32", self.spec.ids)

    def _parts(self, allowed: list[np.ndarray]) -> list[CodedPart]:
        parts = [
            CodedPart(Part(each.vectors, each.norms, alive), each.codes)
            for each, alive in zip(self.segments, allowed, strict=False)
        ]
        tail = self.tail.vectors[: self.count]
        return [*parts, CodedPart(Part(tail, row_norms(tail), allowed[-1]), None)]

    def _hits(self, found: Found, top_k: int) -> list[Hit]:
        ids: list[Any] = [None] * len(found.rows)
        about: list[dict[str, Any]] = [{}] * len(found.rows)
        for part in np.unique(found.parts).tolist():
            at = np.flatnonzero(found.parts == part)
            for i, each in zip(at.tolist(), self._ids(part, found.rows[at]), strict=True):
                ids[i] = each
        keys = best_first(self.spec.metric, found.scores).tolist()
        order = sorted(range(len(ids)), key=lambda i: (keys[i], _id_key(ids[i])))[:top_k]
        kept = np.array(order, np.int64)
        for part in np.unique(found.parts[kept]).tolist():
            at = kept[found.parts[kept] == part]
            for i, each in zip(at.tolist(), self._metadata(part, found.rows[at]), strict=True):
                about[i] = each
        return [Hit(ids[i], float(found.scores[i]), about[i]) for i in order]


def _id_key(id_: str | int) -> bytes | int:
    return id_.encode() if isinstance(id_, str) else id_

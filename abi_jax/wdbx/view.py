"""A collection as it was at one version: what is read, looked up and searched. Nothing that is written changes it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.filters import ONE_ROW, key_of, make_filter
from abi_jax.wdbx.given import check_recall, check_top_k
from abi_jax.wdbx.hits import Hit, hits, named
from abi_jax.wdbx.ids import IntIds
from abi_jax.wdbx.rows import make_ids, make_vectors
from abi_jax.wdbx.search.engine import Part, Searcher, explain
from abi_jax.wdbx.search.flat import row_norms
from abi_jax.wdbx.search.found import Found
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.told import Told
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.tail import Tail
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.search import keyword_search
from abi_jax.wdbx.transfer.export import export

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.mesh import MeshSearch
    from abi_jax.wdbx.search.products import ProductIndex


@dataclass(frozen=True)
class Row:
    """A row as it is told: id, vector `[dim]`, metadata without what is null, the version it was born at, its text."""

    id: str | int
    vector: np.ndarray
    metadata: dict[str, Any]
    born: int
    document: str | None = None


@dataclass(frozen=True)
class View:
    """Rows of `segments`, then the first `count` of `tail`, of which those are there that are alive at `version`.

    mesh: where it is searched; None: on this host. products: by product codes, where these are of use. recall: of the
    rows that are nearest to a vector, how many are to be found on average; 1: all, for certain. told: notes how it is
    searched.
    """

    spec: CollectionSpec
    version: int
    segments: tuple[Segment, ...]
    tail: Tail
    count: int
    mesh: "MeshSearch | None" = None
    products: bool = False
    recall: float = 1.0
    told: Told | None = None

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(alive)) for alive in self.alive())

    def alive(self) -> list[np.ndarray]:
        """Of every segment, and of the tail, which rows there are, bool."""
        return [each.alive(self.version) for each in self.segments] + [self.tail.alive(self.count, self.version)]

    def get(self, ids: Iterable[str | int] | str | int) -> list[Row | None]:
        """The rows of ids, in their order; None where there is none."""
        given = ids if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
        wanted = make_ids(self.spec, given, unique=False)
        listed = wanted if isinstance(wanted, list) else wanted.tolist()
        where = self._find(listed)
        return [None if at is None else self._row(*at) for at in where]

    def ids(self, where: Mapping[str, Any] | None = None) -> list[Any]:
        """The ids of all rows, or of those that pass a filter, ascending."""
        found: list[Any] = []
        for part, passed in enumerate(self.allowed(where)):
            found += self._ids(part, np.flatnonzero(passed))
        return sorted(found, key=id_key)

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
        about = self._metadata(part, np.array([row]))[0] if self.spec.schema else {}
        document = about.pop(DOCUMENT, None)
        id_ = self._ids(part, np.array([row]))[0]
        return Row(id_, np.array(holder.vectors[row]), about, int(holder.born[row]), document)

    def _holder(self, part: int) -> Segment | Tail:
        return self.segments[part] if part < len(self.segments) else self.tail

    def _ids(self, part: int, rows: np.ndarray) -> list[Any]:
        if part == len(self.segments):
            return [self.tail.ids[row] for row in rows.tolist()]
        ids = self.segments[part].ids.take(rows)
        return ids if isinstance(ids, list) else ids.tolist()

    def _table(self, part: int, rows: np.ndarray) -> pa.Table:
        """Metadata of rows of a part, in their order."""
        if part < len(self.segments):
            return self.segments[part].metadata.take(pa.array(rows))
        order = np.argsort(rows, kind="stable")
        found = self.tail.metadata_of(rows[order])
        return found if (order[1:] > order[:-1]).all() else found.take(pa.array(np.argsort(order)))

    def _metadata(self, part: int, rows: np.ndarray) -> list[dict[str, Any]]:
        listed = self._table(part, rows).to_pylist()
        return [{name: value for name, value in each.items() if value is not None} for each in listed]

    def rows_of(self, part: int, rows: np.ndarray) -> tuple[list[Any], np.ndarray, pa.Table]:
        """Ids, vectors and metadata of rows of a part."""
        metadata = self._table(part, rows) if self.spec.schema else self.spec.arrow_schema.empty_table()
        return self._ids(part, rows), np.asarray(self._holder(part).vectors[rows]), metadata

    def export(self, path: str | Path, progress: bool = False) -> int:
        """Writes the rows to a file: .parquet, .arrow, .jsonl, .jsonl.gz or .npz. Returns how many they are.

        progress: shows a bar on standard error.
        """
        return export(self, Path(path), progress)

    def query(
        self, vectors: Any, top_k: int = 10, where: Mapping[str, Any] | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """What `search` finds for one vector `[dim]`, or for each of several `[B, dim]`."""
        given = np.asarray(vectors)
        hits = self.search(given[None] if given.ndim == 1 else given, top_k, where)
        return hits[0] if given.ndim == 1 else hits

    def search(self, queries: Any, top_k: int = 10, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The `top_k` rows that score best for each query, best first; of equal scores, the lower id first.

        queries: `[B, dim]`. where: see `filters`.
        """
        top_k = check_top_k(top_k)
        return self.hits(self._found(queries, top_k, where), top_k)

    def search_arrays(
        self, queries: Any, top_k: int = 10, where: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of what `search` finds, `[B, top_k]`, without metadata: for many queries, and ids of type int.

        Where less is found, ids are -1 and scores NaN.
        """
        if self.spec.ids != "int":
            raise InputError(f"collection {self.spec.name} has ids of type {self.spec.ids}; expected int")
        top_k = check_top_k(top_k)
        best = named(self._found(queries, top_k, where), self._ids, False, top_k)
        if min(best.counts.tolist(), default=0) == top_k:
            return best.ids, best.scores
        there = np.arange(top_k) < best.counts[:, None]
        ids, scores = np.full(there.shape, -1, np.int64), np.full(there.shape, np.nan, np.float32)
        inside = there[:, : best.ids.shape[1]]
        ids[there], scores[there] = best.ids[inside], best.scores[inside]
        return ids, scores

    def _found(self, queries: Any, top_k: int, where: Mapping[str, Any] | None) -> Found:
        checked = make_vectors(self._query_spec, queries, "query")
        if self.mesh is not None:
            parts = self._mesh_parts(self.allowed(where))
            return self.mesh(self.spec, parts, self.spec.metric, checked, top_k, self.told, self.recall)
        return self._searcher(where)(checked, top_k, self.recall, self.told)

    def explain(self, where: Mapping[str, Any] | None = None, top_k: int = 10) -> list[dict[str, Any]]:
        """How the segments and the tail would be searched for one vector, and why: see `search.plan.Plan`.

        Nothing is made for it, and nothing begun: what a query did is told by `said`.
        """
        told = Told()
        top_k = check_top_k(top_k)
        if self.mesh is None:
            plans = explain(self._searcher(where).parts, self.recall, top_k)
        else:
            plans = self.mesh.explain(self._mesh_parts(self.allowed(where), make=False), self.recall, top_k)
        told.add(enumerate(plans), 1)
        return told.entries(self._part_names)

    def telling(self) -> "View":
        """The same view, which notes how it is searched: see `said`."""
        return replace(self, told=Told())

    def said(self) -> list[dict[str, Any]]:
        """How the segments and the tail were searched, by what was done, and for how many queries; see `telling`."""
        return [] if self.told is None else self.told.entries(self._part_names)

    @property
    def _part_names(self) -> list[str]:
        return [*(f"segment {each.number}" for each in self.segments), "tail"]

    def with_recall(self, recall: float) -> "View":
        """The same view, asked for that share of the nearest rows, on average."""
        recall = check_recall(recall)
        if recall == self.recall:
            return self
        if recall not in self._recalls:
            self._recalls.clear()
            self._recalls[recall] = replace(self, recall=recall)
        return self._recalls[recall]

    @cached_property
    def _recalls(self) -> dict[float, "View"]:
        """The last of its kind, since what a view has made ready is its own."""
        return {}

    def index(self) -> int:
        """Waits until all segments that are worth it have inverted lists; how many have."""
        if self.mesh is not None:
            there = [each.products(make=False) if self.products else each.lists() for each in self.segments]
            if not self.mesh.agree([b"" if each is None else b"lists" for each in there]):
                raise WdbxError(f"the processes of a mesh have lists of different segments of {self.spec.name}")
        if self.mesh is not None and not self.products:
            return sum(each.lists_by(self._lists_maker(each), wait=True) is not None for each in self.segments)
        if self.products:
            return sum(each.products(wait=True) is not None for each in self.segments)
        return sum(each.index(wait=True) is not None for each in self.segments)

    def keyword(
        self,
        text: str,
        top_k: int = 10,
        where: Mapping[str, Any] | None = None,
        fields: Sequence[str] | None = None,
        bm25: Bm25 | None = None,
    ) -> list[Hit]:
        """The `top_k` rows that score best for the words of a text (`text.bm25`); of equal scores, the lower id first.

        fields: of type str; `document` where none is named. The scores of several are added.
        """
        return keyword_search(self, text, check_top_k(top_k), where, fields, bm25 or Bm25())

    def allowed(self, where: Mapping[str, Any] | None) -> list[np.ndarray]:
        """Of every segment, and of the tail, the rows that are there and pass a filter, bool."""
        alive = self.alive()
        if where is None:
            return alive
        passed = make_filter(self.spec, where)
        if not self.spec.schema:  # Arrow does not know how many rows there are
            return [each & bool(passed(ONE_ROW)[0]) for each in alive]
        key = key_of(where)
        sealed = [
            each & segment.passed(key, passed) if each.any() else each
            for segment, each in zip(self.segments, alive, strict=False)
        ]
        return [*sealed, alive[-1] & passed(self.tail.metadata(self.count)) if alive[-1].any() else alive[-1]]

    @cached_property
    def _query_spec(self) -> CollectionSpec:
        return CollectionSpec(self.spec.name, self.spec.dim, self.spec.metric, "float32", self.spec.ids)

    def _searcher(self, where: Mapping[str, Any] | None) -> Searcher:
        return self._whole if where is None else Searcher(self._parts(self.allowed(where)), self.spec.metric)

    @cached_property
    def _whole(self) -> Searcher:
        """Searches all rows."""
        return Searcher(self._parts(self._alive_or_all()), self.spec.metric)

    def _parts(self, allowed: Sequence[np.ndarray | None]) -> list[Part]:
        parts = [
            Part(
                each.vectors,
                alive,
                partial(getattr, each, "norms"),
                partial(getattr, each, "codes"),
                each.index,
                each.lists,
                each.products if self.products else None,
                partial(_numbers, each) if self.spec.ids == "int" else None,
            )
            for each, alive in zip(self.segments, allowed, strict=False)
        ]
        tail = self.tail.vectors[: self.count]
        numbers = self.tail.numbers[: self.count] if self.spec.ids == "int" else None
        codes, norms = (lambda: self.tail.codes(self.count)), (lambda: row_norms(tail))
        return [*parts, Part(tail, allowed[-1], norms, codes, ids=None if numbers is None else lambda: numbers)]

    def _alive_or_all(self) -> list[np.ndarray | None]:
        sealed = [None if each.whole(self.version) else each.alive(self.version) for each in self.segments]
        return [*sealed, self.tail.alive(self.count, self.version)]

    def _mesh_parts(self, allowed: list[np.ndarray], make: bool = True) -> list[MeshPart]:
        sealed = zip(self.segments, allowed, strict=False)
        parts = [
            MeshPart(each, each.vectors, alive, self._lists(each, make), self._products(each, make))
            for each, alive in sealed
        ]
        return [*parts, MeshPart(self.tail, self.tail.vectors[: self.count], allowed[-1])]

    def _lists(self, segment: Segment, make: bool) -> "Callable[[], Lists | None]":
        """What looks for the lists of a segment, and begins to make them where a search on a mesh wants some."""
        own = self.products or not make  # product codes come with lists
        if self.mesh is None or own or not self.mesh.wants_lists(self.spec.metric, segment.vectors):
            return segment.lists
        return partial(segment.lists_by, self._lists_maker(segment))

    def _products(self, segment: Segment, make: bool) -> "Callable[[], ProductIndex | None] | None":
        """What looks for the product codes of a segment, where these are wanted, and begins to make them."""
        if self.mesh is None or not self.products:
            return None
        return partial(segment.products, make and self.mesh.programs.alone)

    def _lists_maker(self, segment: Segment) -> "Callable[[np.ndarray], Lists]":
        if self.mesh is not None and self.mesh.makes_lists:
            return partial(self.mesh.make_lists, self.spec, segment, self.spec.metric)
        from abi_jax.wdbx.search.index import lists_alone  # imported where lists are made, since it compiles kernels

        return partial(lists_alone, self.spec.metric)

    def hits(self, found: Found, top_k: int) -> list[list[Hit]]:
        """What was found, with ids and metadata: the `top_k` best; of equal scores, the lower id first."""
        return hits(found, self._ids, self.spec.ids != "int", self._metadata if self.spec.schema else None, top_k)


def _numbers(segment: Segment) -> np.ndarray:
    """Ids of rows that are numbers, int64 `[n]`."""
    return cast(IntIds, segment.ids).values


def id_key(id_: str | int) -> bytes | int:
    """What ids are sorted by."""
    return id_.encode() if isinstance(id_, str) else id_

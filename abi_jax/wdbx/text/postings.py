"""Which rows have a word, and how often: of rows that do not change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from abi_jax.wdbx.row_sizes import row_bytes, runs
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.words import split

SPLIT_AT_ONCE = 64 << 20  # bytes of texts


@dataclass(frozen=True)
class Postings:
    """Words of the texts of `n` rows.

    lengths: words of each text, int32 `[n]`; -1 where it is null. number: of each word. Word `w` is in
    `rows[ends[w - 1] : ends[w]]` (int32, ascending), so often as `counts` (int32) says.
    """

    lengths: np.ndarray
    number: dict[str, int]
    ends: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    _penalties: dict[tuple[Bm25, float], np.ndarray] = field(default_factory=dict, compare=False)

    @cached_property
    def documents(self) -> int:
        """How many texts are not null."""
        return int(np.count_nonzero(self.lengths >= 0))

    @cached_property
    def words(self) -> int:
        """Words of all texts."""
        return int(self.lengths[self.lengths > 0].sum(dtype=np.int64))

    def penalties(self, settings: Bm25, mean: float) -> np.ndarray:
        """What texts pay for their lengths, float64 `[n]`; the last that were asked for are remembered."""
        found = self._penalties.get((settings, mean))
        if found is None:
            found = settings.penalties(self.lengths, mean)
            self._penalties.clear()
            self._penalties[settings, mean] = found
        return found

    def of(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a word, and how often."""
        number = self.number.get(word)
        if number is None:
            return self.rows[:0], self.counts[:0]
        start = int(self.ends[number - 1]) if number else 0
        end = int(self.ends[number])
        return self.rows[start:end], self.counts[start:end]


def make_postings(texts: pa.ChunkedArray | pa.Array) -> Postings:
    """Postings of a column of texts."""
    column = pa.chunked_array([texts]) if isinstance(texts, pa.Array) else texts
    words, of = [], []
    start = 0
    for chunk in _bounded(column):
        found, text = split(chunk)
        words.append(found)
        of.append(text + start)
        start += len(chunk)
    rows = np.concatenate(of) if of else np.zeros(0, np.int64)
    lengths = np.bincount(rows, minlength=len(column)).astype(np.int32)
    lengths[np.asarray(column.is_null())] = -1
    dictionary, indices = _numbered(words)
    # (word, row) as one number: sorting these is faster than sorting by two keys
    keys = np.sort((indices << 32) | rows)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(first, append=len(keys)).astype(np.int32)
    keys = keys[first]
    ends = np.searchsorted(keys >> 32, np.arange(len(dictionary)), "right")
    number = {word: i for i, word in enumerate(dictionary.to_pylist())}
    return Postings(lengths, number, ends, (keys & 0xFFFFFFFF).astype(np.int32), counts)


def _bounded(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column in parts of at most `SPLIT_AT_ONCE` bytes, or of one text: splitting makes texts longer."""
    for chunk in column.chunks:
        if chunk.nbytes <= SPLIT_AT_ONCE:
            yield chunk
        else:
            parts = runs(row_bytes(pa.chunked_array([chunk])), len(chunk), SPLIT_AT_ONCE)
            yield from (chunk.slice(start, stop - start) for start, stop in parts)


def _numbered(words: list[pa.Array]) -> tuple[pa.Array, np.ndarray]:
    """All words there are, each once, in the order in which they come; and of each word its number, int64."""
    encoded = pa.chunked_array(words, pa.string()).dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return pa.array([], pa.string()), np.zeros(0, np.int64)
    indices = [np.asarray(chunk.indices).astype(np.int64) for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary, np.concatenate(indices)


class GrowingPostings:
    """Postings of a column that grows at its end, in pieces of ever larger sizes, so that no row is read often."""

    def __init__(self) -> None:
        self._pieces: tuple[tuple[int, Postings], ...] = ()  # the first row of each, and its words

    def up_to(self, texts: pa.ChunkedArray) -> Sequence[tuple[int, Postings]]:
        """Pieces that cover at least the rows of `texts`, all that there were so far."""
        pieces, count = self._pieces, len(texts)
        done = pieces[-1][0] + len(pieces[-1][1].lengths) if pieces else 0
        if count <= done:
            return pieces
        kept = list(pieces)
        start = done
        while kept and len(kept[-1][1].lengths) < 2 * (count - start):
            start = kept.pop()[0]
        made = (*kept, (start, make_postings(texts.slice(start, count - start))))
        self._pieces = made
        return made

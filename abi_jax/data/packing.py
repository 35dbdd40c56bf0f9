"""Several short examples in one row, none seeing another.

tokens     a a a a b b b c c .
segments   1 1 1 1 2 2 2 3 3 0      0 is padding; attention stays within one segment
positions  0 1 2 3 0 1 2 0 1 0      restart with every example
targets    a a a a' b b b' c c' .   each the next token of its own example
"""

from collections.abc import Sequence

import numpy as np

from abi_jax.data.examples import Example

Batch = dict[str, np.ndarray]


class RowPacker:
    """Assigns examples to rows of T tokens, first fit among a bounded number of open rows.

    When an example fits nowhere and no more rows may be opened, the fullest row is closed and handed
    out. Holds indices and lengths only, so its state is small and exact.
    """

    def __init__(self, length: int, open_rows: int, start: Sequence[Sequence[tuple[int, int]]] = ()) -> None:
        """`start` restores open rows, each a list of (index, length of the example)."""
        self._length = length
        self._limit = open_rows
        self._open = [list(row) for row in start]

    @property
    def open(self) -> list[list[int]]:
        """Example indices of the rows being filled, oldest row first."""
        return [[index for index, _ in row] for row in self._open]

    def add(self, index: int, size: int) -> list[int] | None:
        """Places an example of `size` <= T tokens; returns the indices of a row if one was closed for it."""
        if not 0 < size <= self._length:
            raise ValueError(f"example {index} has {size} tokens; a row holds 1 to {self._length}")
        for row in self._open:
            if self._space(row) >= size:
                row.append((index, size))
                return None
        closed = None
        if len(self._open) == self._limit:
            closed = self._open.pop(min(range(self._limit), key=lambda r: self._space(self._open[r])))
        self._open.append([(index, size)])
        return None if closed is None else [i for i, _ in closed]

    def finish(self) -> list[int] | None:
        """Returns the oldest open row and closes it; None when there is none left."""
        return [i for i, _ in self._open.pop(0)] if self._open else None

    def _space(self, row: list[tuple[int, int]]) -> int:
        return self._length - sum(size for _, size in row)


def assemble(
    rows: Sequence[Sequence[Example]],
    length: int,
    personas: int,
    pad: int = 0,
    response_only: bool = True,
    attribute: bool = False,
) -> Batch:
    """Lays examples out in rows; an empty row is all padding.

    Returns [B, T] int32 `tokens`, `targets`, `positions`, `segments`, `roles`, `group`; [B, T] float32
    `weights`; [B, T] bool `active`, where persona terms act: nowhere on padding and, when `response_only`,
    only on positions that predict the response; [B, T, P] float32 `mixture`, zero where not active; with
    `attribute`, [B, T] int32 `attribute`, the example's own, 0 for none.
    Padding has tokens and targets `pad` and zero everywhere else.
    """
    shape = (len(rows), length)
    batch = {name: np.zeros(shape, np.int32) for name in ("positions", "segments", "roles", "group")}
    batch["tokens"] = np.full(shape, pad, np.int32)
    batch["targets"] = np.full(shape, pad, np.int32)
    batch["weights"] = np.zeros(shape, np.float32)
    batch["active"] = np.zeros(shape, bool)
    batch["mixture"] = np.zeros((*shape, personas), np.float32)
    if attribute:
        batch["attribute"] = np.zeros(shape, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for segment, example in enumerate(row, 1):
            span = np.s_[r, at : at + len(example)]
            at += len(example)
            batch["tokens"][span] = example.tokens
            batch["targets"][span] = example.targets
            batch["roles"][span] = example.roles
            batch["weights"][span] = example.weights
            batch["group"][span] = example.group
            batch["segments"][span] = segment
            batch["positions"][span] = np.arange(len(example))
            batch["active"][span] = example.active if response_only else True
            if attribute:
                batch["attribute"][span] = example.attribute
            batch["mixture"][span] = batch["active"][span][:, None] * example.mixture
    return batch

"""A bar on standard error for what takes long, in a terminal only."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items; a bar appears after two seconds and goes when it is done."""
    bar = tqdm(items, what, total, disable=not sys.stderr.isatty(), leave=False, delay=2, dynamic_ncols=True)
    yield from bar

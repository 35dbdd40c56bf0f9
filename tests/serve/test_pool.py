"""Pages and the prefix cache: nothing is lost, nothing is shared that differs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from abi_jax.serve.engine.pool import Chunk, PagePool, chunk_keys

pytestmark = pytest.mark.smoke

SIZE = 4
Text = list[tuple[int, int]]
texts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2)), max_size=20)


def keys(text: Text, root: bytes = b"") -> list[bytes]:
    tokens, roles = (np.array([pair[i] for pair in text], np.int32) for i in (0, 1))
    return chunk_keys(tokens, roles, SIZE, root)


@settings(deadline=None)
@given(texts, texts, st.binary(max_size=2), st.binary(max_size=2))
def test_keys_are_equal_exactly_where_all_that_was_read_is(a: Text, b: Text, root_a: bytes, root_b: bytes) -> None:
    for n, (x, y) in enumerate(zip(keys(a, root_a), keys(b, root_b), strict=False), 1):
        assert (x == y) == (a[: n * SIZE] == b[: n * SIZE] and root_a == root_b)


def test_a_prompt_of_less_than_a_chunk_has_no_keys() -> None:
    assert keys([(1, 1)] * (SIZE - 1)) == []
    assert len(keys([(1, 1)] * SIZE)) == 1


class Pool(RuleBasedStateMachine):
    """Jobs that read prompts of a few chunks, find what others read, and leave, over a pool that is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(count=17)
        self.jobs: list[list[Chunk]] = []
        self.content: dict[int, bytes] = {}

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def read(self, prompt: list[int]) -> None:
        chunks: list[Chunk] = []
        for n in range(1, len(prompt) + 1):
            key = bytes(prompt[:n])
            chunk = self.pool.find(key)
            if chunk is None:
                pages = self.pool.take(2)
                if pages is None:
                    break
                assert len(set(pages)) == 2 and 0 not in pages
                for page in pages:
                    assert all(page not in c.pages for job in [*self.jobs, chunks] for c in job), "taken twice"
                    self.content[page] = key
                chunk = self.pool.publish(key, pages, chunks[-1] if chunks else None)
            assert all(self.content[page] == key for page in chunk.pages), "a chunk's pages hold something else"
            chunks.append(chunk)
        self.jobs.append(chunks)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        job = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
        for chunk in reversed(job):
            self.pool.leave(chunk)

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        assert self.pool.find(bytes([0])) is None and self.pool.find(bytes([1])) is None

    @invariant()
    def every_page_is_somewhere(self) -> None:
        usage = self.pool.usage()
        held = {page for job in self.jobs for chunk in job for page in chunk.pages}
        assert usage.pages == 16 and usage.used == len(held)
        assert 0 <= usage.cached <= usage.pages - usage.used
        if not self.jobs:
            pages = self.pool.take(16)
            assert pages is not None and sorted(pages) == list(range(1, 17)), "a page was lost"
            assert self.pool.take(1) is None
            self.pool.give(pages)


TestPool = Pool.TestCase
TestPool.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


def test_the_longest_unused_goes_first_and_what_follows_a_chunk_goes_before_it() -> None:
    pool = PagePool(count=5)
    first = pool.publish(b"a", pool.take(1) or [], None)
    second = pool.publish(b"ab", pool.take(1) or [], first)
    other = pool.publish(b"c", pool.take(1) or [], None)
    for chunk in (second, first, other):
        pool.leave(chunk)
    assert pool.usage().cached == 3
    assert pool.take(2) is not None  # the free one, and `ab`
    assert pool.find(b"ab") is None
    for key in (b"a", b"c"):
        found = pool.find(key)
        assert found is not None
        pool.leave(found)
    assert pool.take(1) is not None
    assert pool.find(b"a") is None and pool.find(b"c") is not None

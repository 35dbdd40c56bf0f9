"""Which pages of the cache are free, whose they are, and which prompts' beginnings they hold.

A prompt is cut into chunks at fixed places. A chunk's key is a hash of all that its keys and values follow from: its
tokens, their roles, and the key of the chunk before it, the first one's of what else the prompt was read with. Equal
keys are equal contents, so that a chunk that was read once serves every prompt that begins like it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from abi_jax.model.pages import NOBODYS
from abi_jax.serve.engine.seam import Usage


@dataclass(eq=False)
class Chunk:
    """A part of a prompt that was read, in pages that no one writes to any more; `users` and `followers` keep it.

    Whoever uses a chunk uses those before it, so that an unused one has no follower in use. lost: see `clear`.
    """

    key: bytes
    pages: tuple[int, ...]
    before: "Chunk | None"
    users: int = 0
    followers: int = 0
    lost: bool = False


@dataclass
class PagePool:
    """`count` pages, of which page 0 is nobody's. Chunks that nobody uses stay until their pages are wanted."""

    count: int
    _free: list[int] = field(init=False)
    _chunks: dict[bytes, Chunk] = field(default_factory=dict)
    _idle: OrderedDict[bytes, Chunk] = field(default_factory=OrderedDict)  # unused, the longest unused first
    _kept: int = 0  # pages of unused chunks, those with followers included

    def __post_init__(self) -> None:
        self._free = [page for page in range(self.count - 1, -1, -1) if page != NOBODYS]

    def usage(self) -> Usage:
        """How full the pool is."""
        total = self.count - 1
        return Usage(total, total - len(self._free) - self._kept, self._kept)

    def take(self, count: int) -> list[int] | None:
        """Takes pages, from unused chunks where none is free; None, and nothing taken, if there are too few."""
        if count > len(self._free) + self._kept:
            return None
        while len(self._free) < count:
            self._forget(next(iter(self._idle.values())))
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Sequence[int]) -> None:
        """Gives pages back."""
        self._free.extend(reversed(pages))

    def find(self, key: bytes) -> Chunk | None:
        """The chunk of that key, with one user more; None if it was not read, or is forgotten."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            if not chunk.users:
                self._kept -= len(chunk.pages)
                self._idle.pop(key, None)
            chunk.users += 1
        return chunk

    def publish(self, key: bytes, pages: Sequence[int], before: Chunk | None) -> Chunk:
        """Lets others find what was read into `pages`, after the chunk `before`; it has one user."""
        chunk = Chunk(key, tuple(pages), before, users=1, lost=before is not None and before.lost)
        if not chunk.lost:
            assert key not in self._chunks, "a chunk was read twice"
            self._chunks[key] = chunk
            if before is not None:
                before.followers += 1
        return chunk

    def leave(self, chunk: Chunk) -> None:
        """Takes one user off a chunk; it stays until its pages are wanted."""
        chunk.users -= 1
        if chunk.users == 0 and chunk.lost:
            self.give(chunk.pages)
        elif chunk.users == 0:
            self._kept += len(chunk.pages)
            if not chunk.followers:
                self._idle[chunk.key] = chunk

    def clear(self) -> None:
        """Forgets all chunks: those in use are lost, and their pages come back with their last user."""
        while self._idle:
            self._forget(next(iter(self._idle.values())))
        for chunk in self._chunks.values():
            chunk.lost, chunk.followers = True, 0
        self._chunks.clear()

    def _forget(self, chunk: Chunk) -> None:
        del self._idle[chunk.key]
        del self._chunks[chunk.key]
        self._kept -= len(chunk.pages)
        self.give(chunk.pages)
        before = chunk.before
        if before is not None:
            before.followers -= 1
            if not before.followers and not before.users:
                self._idle[before.key] = before
                self._idle.move_to_end(before.key, last=False)


def chunk_keys(tokens: np.ndarray, roles: np.ndarray, size: int, root: bytes) -> list[bytes]:
    """The keys of the whole chunks of a prompt, `size` tokens each. root: what else they follow from."""
    keys = []
    key = blake2b(root, digest_size=32).digest()
    for start in range(0, len(tokens) - size + 1, size):
        part = slice(start, start + size)
        text = np.ascontiguousarray(tokens[part], "<i4").tobytes() + np.ascontiguousarray(roles[part], "<i4").tobytes()
        key = blake2b(text, digest_size=32, key=key).digest()
        keys.append(key)
    return keys

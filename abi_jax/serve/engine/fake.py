"""An engine without a model: says tokens that follow from the prompt and the seed alone, as fast as it is told to."""

import hashlib
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from abi_jax.serve.engine.seam import ENDED, MAX_LOGPROBS, NONE, Job, NoRow, Step, TokenLogprobs, Usage, check_sizes


@dataclass(eq=False)
class FakeWork:
    """A job of the fake engine."""

    job: Job
    unread: int
    pages: int
    slot: int | None = None
    said: int = 0
    cached_tokens: int = 0
    adaptation: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(frozen=True)
class FakePending:
    """A step that is done already, or done once its time is over."""

    step: Step
    at: float

    def read(self) -> Step:
        """Waits for the step."""
        time.sleep(max(0.0, self.at - time.monotonic()))
        return self.step


@dataclass
class FakeEngine:
    """Behind the seam of `engine/seam.py`.

    `script`: what is said, in turn, whatever the prompt; without it, tokens from a hash of prompt, seed and place, none
    of them an end. After the script a job ends by itself. step_seconds: how long a step takes, one after the other.
    at_once: tokens of a step, all but the first of them guessed. `hold`, while set, keeps `decode` from returning, and
    `broken` makes it raise.
    """

    slots: int = 8
    max_length: int = 512
    vocab_size: int = 256
    pages: int = 64
    page_size: int = 64
    chunk: int = 64
    step_seconds: float = 0.0
    at_once: int = 1
    script: tuple[int, ...] = ()
    hold: threading.Event = field(default_factory=threading.Event)
    broken: str | None = None
    works: dict[int, FakeWork] = field(default_factory=dict)
    used: int = 0
    _until: float = 0.0  # when the device is done with what it was given

    def check(self, job: Job) -> None:
        """Raises `InputError` for a job of wrong sizes."""
        check_sizes(job, self.max_length, self.vocab_size)

    def begin(self, job: Job) -> FakeWork | NoRow | None:
        """Takes a job on if there are pages for it."""
        length = min(len(job.prompt.tokens) + job.max_tokens, self.max_length)
        pages = -(-length // self.page_size)
        if self.used + pages > self.pages:
            return None
        self.used += pages
        return FakeWork(job, len(job.prompt.tokens), pages)

    def prefill(self, work: FakeWork) -> bool:
        """Reads one chunk."""
        work.unread -= self.chunk
        if work.unread <= 0 and work.job.prompt_logprobs is not None:
            top = tuple((i, -1.0 - i) for i in range(work.job.prompt_logprobs))
            work.prompt_logprobs = [None, *[TokenLogprobs(-1.0, top)] * (len(work.job.prompt.tokens) - 1)]
        return work.unread <= 0

    def insert(self, work: FakeWork, slot: int) -> None:
        """Takes a slot."""
        assert slot not in self.works
        self.works[slot], work.slot = work, slot

    def decode(self) -> FakePending:
        """Says one token in every slot, or as many as it says at once."""
        while self.hold.is_set():
            time.sleep(0.01)
        if self.broken:
            raise RuntimeError(self.broken)
        tokens = np.full((self.slots, self.at_once), NONE, np.int32)
        tokens[:, 0] = ENDED
        for slot, work in self.works.items():
            for at in range(self.at_once):
                tokens[slot, at] = self._token(work)
                work.said += 1
                if tokens[slot, at] == ENDED:
                    break
        ids = np.broadcast_to(np.arange(MAX_LOGPROBS, dtype=np.int32), (*tokens.shape, MAX_LOGPROBS))
        logprobs, guessed = np.full(tokens.shape, -1.0, np.float32), np.full(self.slots, self.at_once - 1, np.int32)
        step = Step(tokens, guessed, logprobs, ids, -1.0 - ids.astype(np.float32))
        self._until = max(self._until, time.monotonic()) + self.step_seconds
        return FakePending(step, self._until)

    def release(self, work: FakeWork) -> None:
        """Frees slot and pages."""
        if work.slot is not None:
            del self.works[work.slot]
        self.used -= work.pages

    def usage(self) -> Usage:
        """How full the cache is."""
        return Usage(self.pages, self.used, 0)

    def _token(self, work: FakeWork) -> int:
        if self.script:
            return self.script[work.said] if work.said < len(self.script) else ENDED
        prompt = work.job.prompt
        seed = f"{prompt.tokens.tolist()} {prompt.sampling.seed} {work.said}"
        return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "little") % self.vocab_size

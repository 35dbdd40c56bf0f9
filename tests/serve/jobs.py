"""Jobs for tests that need no model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from abi_jax.model.generate import Prompt
from abi_jax.model.sampling import SamplingConfig
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.scheduler import Ended, Event, Scheduler, Ticket, Token


def job(length: int = 10, max_tokens: int = 5, seed: int = 0, **settings: Any) -> Job:
    """A job whose prompt is `length` tokens that follow from the seed."""
    tokens = np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)
    prompt = Prompt(tokens, np.full(length, 4, np.int32), sampling=SamplingConfig(seed=seed))
    return replace(Job(prompt, max_tokens), **settings)


def run(scheduler: Scheduler, until: Callable[[], bool] | None = None) -> list[tuple[Ticket, Event]]:
    """Steps until the scheduler is idle, or `until` says so."""
    events: list[tuple[Ticket, Event]] = []
    for _ in range(10_000):
        if scheduler.idle or (until is not None and until()):
            return events
        events += scheduler.step()
    raise AssertionError("the scheduler did not come to rest")


def said(events: list[tuple[Ticket, Event]], ticket: Ticket) -> tuple[list[int], str | None]:
    """What one ticket's answer was and why it ended."""
    mine = [event for of, event in events if of is ticket]
    ended = [event for event in mine if isinstance(event, Ended)]
    assert len(ended) <= 1 and (not ended or mine[-1] is ended[0]), "an end comes once, and last"
    return [event.id for event in mine if isinstance(event, Token)], ended[0].reason if ended else None

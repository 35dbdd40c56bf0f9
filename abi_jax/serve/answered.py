"""What a receipt is about: one answer, and what it was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from abi_jax.serve.engine.seam import Job


@dataclass(frozen=True)
class Ending:
    """Why an answer ended: `length` at its limit of tokens, `stop` by itself, or at the stop string `at`."""

    finish: Literal["stop", "length"]
    at: str | None = None

    def __str__(self) -> str:
        return self.finish if self.at is None else f"{self.finish} at {self.at!r}"


@dataclass(frozen=True)
class Answered:
    """An answer.

    tokens: all that were made, up to the one that completes a stop string. mixture: by name, for those who read it;
    the job's own array counts. stops: the stop strings. memories: what is told of those that were found. adaptation:
    the digest of that of the job's user, where there is one.
    """

    job: Job
    tokens: Sequence[int]
    mixture: Mapping[str, float]
    ending: Ending
    stops: Sequence[str] = ()
    memories: Sequence[Mapping[str, Any]] = ()
    adaptation: str | None = None

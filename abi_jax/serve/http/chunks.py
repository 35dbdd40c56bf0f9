"""What answers of both kinds have in common as they are sent: their head, their usage, chunks that are text alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic_core import to_json

from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.generation import Choice, Generation
from abi_jax.serve.http.respond import event
from abi_jax.serve.http.schema import Sampled
from abi_jax.text.pieces import Pieces

LOWEST = -9999.0  # OpenAI's for what is all but impossible; JSON has no infinity
_MARK = "\0"  # no name of a model has it


def wants_usage(body: Sampled) -> bool:
    """Whether a stream ends with its usage. Raises `ApiError` for options of a stream that is none."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for stream = true", "stream_options", "invalid_value")
    return body.stream_options is not None and bool(body.stream_options.include_usage)


@dataclass(eq=False)
class Chunks(ABC):
    """How the answers to one request look; see `respond.Form`.

    include_usage: of a stream, a chunk with the usage at its end. OBJECT, CHUNK: what an answer and a chunk are called.
    """

    OBJECT: ClassVar[str]
    CHUNK: ClassVar[str]

    pieces: Pieces
    include_usage: bool
    _around: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, init=False)

    def line(self, made: Generation, choice: Choice) -> bytes | None:
        """The chunk of a choice as it is sent, where all that is new is text."""
        if not choice.fresh or choice.finish is not None or choice.job.logprobs is not None or not self._plain(choice):
            return None
        found = self._around.get(choice.index)
        if found is None:
            before, _, after = event(self._text(made, choice, _MARK)).partition(to_json(_MARK))
            found = self._around[choice.index] = before, after
        text = to_json(choice.fresh)
        choice.told()
        return found[0] + text + found[1]

    def usage(self, made: Generation) -> Mapping[str, Any] | None:
        """The usage of all choices."""
        return {**self._chunk(made, []), "usage": made.usage()} if self.include_usage else None

    def _whole(self, made: Generation, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**_head(made, self.OBJECT), "choices": choices, "usage": made.usage(), "abi": made.told()}

    def _chunk(self, made: Generation, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        chunk = {**_head(made, self.CHUNK), "choices": choices}
        return {**chunk, "usage": None} if self.include_usage else chunk

    @abstractmethod
    def _plain(self, choice: Choice) -> bool:
        """Whether nothing but text may be new of a choice that goes on."""

    @abstractmethod
    def _text(self, made: Generation, choice: Choice, text: str) -> dict[str, Any]:
        """The chunk of a choice of which nothing but `text` is new."""


def _head(made: Generation, kind: str) -> dict[str, Any]:
    return {"id": made.id, "object": kind, "created": made.created, "model": made.asked.model}

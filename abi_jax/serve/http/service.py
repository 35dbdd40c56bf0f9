"""What the routes share: the engine's thread, who can speak, what this server allows."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from abi_jax.serve.answered import Answered
from abi_jax.serve.embedder import Embedder
from abi_jax.serve.engine.seam import Engine
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.bridge import Bridge
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.metrics import Metrics
from abi_jax.serve.http.queries import Queries
from abi_jax.serve.users import UserFolder
from abi_jax.serve.voices import Voices
from abi_jax.serve.worker import Worker
from abi_jax.text import Tokenizer
from abi_jax.text.pieces import Pieces
from abi_jax.wdbx import Database
from abi_jax.wdbx.encoder import Encoder
from abi_jax.wdbx.policy import Policy

if TYPE_CHECKING:
    from abi_jax.serve.grammar import Matched
    from abi_jax.serve.http.tracing import Traces


class Lineage(Protocol):
    """What an answer was made from."""

    def told(self) -> Mapping[str, Any]:
        """The links as JSON: of the model, and of the memory where there is one."""

    def receipt(self, about: Answered) -> Mapping[str, Any] | None:
        """What regenerates an answer, as JSON; None where this server gives none."""


class Fresh(Protocol):
    """Another step of the model, loaded and checked."""

    @property
    def voices(self) -> Voices:
        """Who speaks with it."""

    @property
    def lineage(self) -> Lineage:
        """What answers are made from then."""

    def apply(self) -> None:
        """Speaks with it from now on. Called on the engine's thread, between answers."""


class Reloader(Protocol):
    """Where other steps of the model come from."""

    def load(self, step: int | None, voices: Voices) -> Fresh:
        """Checks and loads a step, by default the newest. Raises `InputError` where its lineage does not hold."""


class Moderator(Protocol):
    """What judges texts."""

    @property
    def name(self) -> str:
        """What it is asked for by."""

    def judge(self, texts: Sequence[str]) -> Sequence[Mapping[str, float]]:
        """Scores from 0 to 1 by category, of each text; 0.5 and more is flagged. Any thread may call it."""


@dataclass(frozen=True)
class NoLineage:
    """Of a model whose checkpoint has no chain."""

    def told(self) -> Mapping[str, Any]:
        """Nothing is known."""
        return {"model": None, "memory": None}

    def receipt(self, about: Answered) -> Mapping[str, Any] | None:
        """None can be given."""
        del about
        return None


@dataclass
class Service:
    """Everything that lives as long as the server.

    `voices` is replaced whole, never changed, under `changing`; `roster` is the file that keeps what it is then.
    users: where users' own adaptations are. store, store_encoder: the vector store, opened, and what makes vectors of
    texts for it. policy: who may do what with its collections, besides what roles allow. host: what else than this
    machine's names a server without keys may be called; "" for anything. traces: where it is told what took how long.
    """

    worker: Worker
    bridge: Bridge
    voices: Voices
    limits: Limits = field(default_factory=Limits)
    lineage: Lineage = field(default_factory=NoLineage)
    gate: Gate = field(default_factory=Gate)
    embedder: Embedder | None = None
    moderator: Moderator | None = None
    reloader: Reloader | None = None
    roster: Path | None = None
    users: UserFolder | None = None
    store: Database | None = None
    store_encoder: Encoder | None = None
    policy: Policy | None = None
    name: str = "abi"
    host: str = "127.0.0.1"
    traces: "Traces | None" = None
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    running: int = 0
    background: set[asyncio.Task[None]] = field(default_factory=set)
    _pieces: Pieces | None = None
    _grammars: tuple[Tokenizer, Any] | None = None
    _making: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.worker, self.name)
        self.changing = asyncio.Lock()
        self._earlier: deque[tuple[float, Lineage]] = deque(maxlen=16)
        self.queries = Queries(self.limits.kept_queries, self.limits.kept_bytes, self.limits.kept_seconds)

    @classmethod
    def of(
        cls,
        engine: Engine,
        voices: Voices,
        limits: Limits | None = None,
        **more: Any,
    ) -> "Service":
        """A service over an engine, whose thread is not yet started."""
        limits, bridge = limits or Limits(), Bridge()
        worker = Worker(engine, bridge.deliver, max_waiting=limits.max_waiting)
        return cls(worker, bridge, voices, limits, **more)

    def start(self) -> None:
        """Starts the engine's thread; call it on the event loop."""
        self.bridge.attach(asyncio.get_running_loop())
        self.worker.start()

    async def stop(self) -> None:
        """Ends the engine's thread and whatever still runs."""
        await asyncio.to_thread(self.worker.stop)

    async def reload(self, step: int | None) -> None:
        """Speaks with another step as soon as all answers that have begun are finished; those that wait begin with it.

        Call it under `changing`. Raises what `Reloader.load` raises, `EngineStopped`, and what the engine raises.
        """
        assert self.reloader is not None
        fresh = await asyncio.to_thread(self.reloader.load, step, self.voices)

        def change() -> None:
            fresh.apply()
            self._earlier.append((time.monotonic(), self.lineage))
            self.lineage, self.voices = fresh.lineage, fresh.voices

        await asyncio.wrap_future(self.worker.call(change, between_answers=True))

    def lineage_at(self, begun: float | None) -> Lineage:
        """What an answer was made from that began at a time of `time.monotonic`."""
        for until, lineage in tuple(self._earlier):
            if begun is not None and begun < until:
                return lineage
        return self.lineage

    @property
    def pieces(self) -> Pieces:
        """The tokenizer's tokens, one at a time."""
        if self._pieces is None or self._pieces.tokenizer is not self.voices.tokenizer:
            self._pieces = Pieces(self.voices.tokenizer)
        return self._pieces

    def grammar(self, source: str) -> "Matched":
        """A grammar at its beginning; the first of all, and the first of each, takes a while.

        Raises `InputError` for one that is none, `ImportError` without llguidance.
        """
        from abi_jax.serve.grammar import Grammars

        tokenizer = self.voices.tokenizer
        with self._making:
            if self._grammars is None or self._grammars[0] is not tokenizer:
                self._grammars = tokenizer, Grammars(tokenizer, self.worker.engine.vocab_size)
            made: Grammars = self._grammars[1]
        return made.make(source)

    async def drain(self, seconds: float) -> bool:
        """Refuses what is new and waits for what runs; ends it, and returns False, if that takes longer than it may."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        finished = not self.running
        if not finished:
            await self.stop()
        return finished

"""A server over an engine that needs no model, for tests of the HTTP face."""

import asyncio
import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx
import numpy as np
import openai

from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.persona import Persona, Sampling
from abi_jax.serve.engine.fake import FakeEngine, FakePending, FakeWork
from abi_jax.serve.engine.seam import ENDED
from abi_jax.serve.http.app import make_app
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.server import DrainingServer, server_config
from abi_jax.serve.http.service import Service
from abi_jax.serve.voices import Voices
from abi_jax.text import Tokenizer, train_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog; She said: hello, world! 1234 user assistant system model"
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Why does my build fail?"}]
# An answer of so many tokens of such an engine takes hours: it ends when a test ends it, however slow the machine is.
LASTING: dict[str, Any] = {"vocab_size": 400, "step_seconds": 0.01, "max_length": 10**6, "pages": 10**6}
ENDLESS = 900_000
CERTIFICATES = ssl.create_default_context()  # no client here uses them, and each would read them anew
PATIENCE = 60.0  # seconds for anything to happen, so that a test that hangs ends


@cache
def tokenizer() -> Tokenizer:
    """A small one of our own."""
    return train_tokenizer([TEXT] * 4, 400)


@cache
def voices() -> Voices:
    """Two personas that are instructions."""
    config = ModelConfig(400, 32, 2, 2, 2, 16, 64, max_length=512)
    greedy = Sampling(temperature=0.0, max_tokens=8)
    personas = tuple(Persona(name, voice=f"Speak as {name}.", sampling=greedy) for name in ("abbey", "aviva"))
    return Voices(config, tokenizer(), personas)


def banked() -> Voices:
    """The same two, trained: a persona bank of four rows."""
    return replace(voices(), config=replace(voices().config, persona=PersonaShape(capacity=4)))


def script(text: str) -> tuple[int, ...]:
    """What an engine says, as tokens."""
    return tuple(tokenizer().encode(text))


@dataclass
class PausingEngine(FakeEngine):
    """Where `pause` is not 0, that step from now sets `hold`: by then all but the two before it are told."""

    pause: int = 0

    def decode(self) -> FakePending:
        """See `FakeEngine`."""
        if self.pause:
            self.pause -= 1
            if not self.pause:
                self.hold.set()
        return super().decode()


class ObedientEngine(FakeEngine):
    """Says whatever a grammar lets it say, and ends now and then where it may."""

    def _token(self, work: FakeWork) -> int:
        grammar, ends = work.job.grammar, tokenizer().eos_ids
        if grammar is None:
            return super()._token(work)
        allowed = np.flatnonzero(np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")[: self.vocab_size])
        drawn = random.Random(f"{work.job.prompt.sampling.seed} {work.said}")
        going = [int(token) for token in allowed if token not in ends]
        if len(going) < len(allowed) and (not going or drawn.random() < 0.3):
            return ENDED
        return drawn.choice(going)


class Running:
    """A server on loopback, and clients of it."""

    def __init__(self, service: Service, port: int, server: DrainingServer) -> None:
        self.service, self.port, self.server = service, port, server
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=CERTIFICATES)

    def openai(self, key: str = "none", **settings: Any) -> Any:
        """The official client."""
        http = openai.DefaultHttpxClient(verify=CERTIFICATES)
        settings = {"max_retries": 0, "timeout": PATIENCE, "http_client": http, **settings}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **settings)


@contextlib.contextmanager
def serving(
    engine: FakeEngine | None = None,
    limits: Limits | None = None,
    speaking: Voices | None = None,
    uvicorn: Any = None,
    **more: Any,
) -> Iterator[Running]:
    """Serves until the end of the block. uvicorn: settings of its own; more: what `Service` takes."""
    engine = engine or FakeEngine(vocab_size=400)
    service = Service.of(engine, speaking or voices(), limits, **more)
    listener = socket.create_server(("127.0.0.1", 0))
    # a connection that nobody uses for a while stays: its client may be about to
    settings = {"timeout_keep_alive": 600, **(uvicorn or {})}
    server = DrainingServer(server_config(make_app(service), service.limits, **settings), service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    running = Running(service, listener.getsockname()[1], server)
    try:
        if uvicorn is None:
            running.http.get("/ready").raise_for_status()
        yield running
    finally:
        engine.hold.clear()
        service.worker.stop()
        server.should_exit = True
        running.http.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        listener.close()


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)

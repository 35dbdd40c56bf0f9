"""Sends requests as they are due, and asks a server beforehand what it understands."""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import numpy as np

from abi_jax.errors import InputError
from abi_jax.serve.bench.answers import Answer, read
from abi_jax.serve.bench.prompts import PATHS, Ask, Prompts, Style
from abi_jax.serve.bench.wire import Reply, Wire

WARM_UP = 1_000_000  # prompts before a point are drawn as those of a point that no sweep has


@dataclass(frozen=True)
class Point:
    """One load: `count` requests that arrive at `rate` a second, infinity for all at once.

    concurrency: how many may be under way; one that must wait for that is not sent, and its clock does not run. None
    for as many as there are.
    """

    concurrency: int | None
    rate: float
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or (self.concurrency is not None and self.concurrency < 1):
            raise InputError(f"{self.count} requests, {self.concurrency} at a time; expected at least 1")
        if not self.rate > 0:
            raise InputError(f"request rate {self.rate:g}; expected a number above 0, or inf")

    def gaps(self, seed: int) -> list[float]:
        """Seconds between arrivals: of a Poisson process, so exponential."""
        if math.isinf(self.rate):
            return [0.0] * self.count
        drawn = np.random.default_rng([seed, WARM_UP]).exponential(1 / self.rate, self.count)
        drawn[0] = 0.0
        times: list[float] = drawn.tolist()
        return times


@dataclass(frozen=True)
class Ran:
    """What a point gave: the answers in the order of their requests, how long all took, and this process's work."""

    point: Point
    answers: Sequence[Answer]
    seconds: float
    cpu_seconds: float


async def run(wire: Wire, requests: Sequence[bytes], point: Point, seed: int = 0) -> Ran:
    """Sends requests made by `Wire.post`, and waits for all answers."""
    places = asyncio.Semaphore(point.concurrency or len(requests))
    tasks = []

    async def one(request: bytes) -> Reply:
        try:
            return await wire.send(request)
        finally:
            places.release()

    start, cpu = perf_counter(), process_time()
    due = start
    for request, gap in zip(requests, point.gaps(seed), strict=True):
        due += gap
        if (wait := due - perf_counter()) > 0:
            await asyncio.sleep(wait)
        await places.acquire()
        tasks.append(asyncio.create_task(one(request)))
    replies = await asyncio.gather(*tasks)
    seconds, spent = perf_counter() - start, process_time() - cpu
    return Ran(point, [read(reply) for reply in replies], seconds, spent)


async def first_model(wire: Wire) -> str:
    """The first model that the server lists. Raises `InputError` where it lists none."""
    reply = await wire.get("/v1/models")
    if reply.failure or reply.status != 200:
        raise InputError(f"{wire.address}/v1/models: {read(reply).failure}")
    try:
        return str(json.loads(reply.body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        told = reply.body[:200].decode(errors="replace")
        raise InputError(f"{wire.address}/v1/models lists no model: {told}; expected one, or name it") from None


async def understood(wire: Wire, style: Style, ask: Ask) -> Style:
    """The style less the optional fields that the server refuses, found out by asking once.

    Raises `InputError` with what the server says where it answers none of that.
    """
    while True:
        reply = await wire.send(wire.post(PATHS[style.endpoint], next(style.bodies([ask]))))
        failure = read(reply).failure
        if not failure:
            return style
        if reply.status not in (400, 422) or not style.optional:
            raise InputError(f"{wire.address}{PATHS[style.endpoint]}: {failure}")
        named = next((name for name in style.optional if name in failure), next(reversed(style.optional)))
        style = replace(style, optional={k: v for k, v in style.optional.items() if k != named})


@dataclass(frozen=True)
class Sweep:
    """Points in turn, each after `warm_up` requests of its kind that do not count."""

    style: Style
    prompts: Prompts
    seed: int
    warm_up: int

    async def at(self, wire: Wire, number: int, point: Point) -> Ran:
        """The point with that number."""
        if self.warm_up:
            before = replace(point, count=self.warm_up, rate=math.inf)
            await run(wire, self._requests(wire, WARM_UP + number, before), before)
        return await run(wire, self._requests(wire, number, point), point, self.seed)

    def _requests(self, wire: Wire, number: int, point: Point) -> list[bytes]:
        path = PATHS[self.style.endpoint]
        asks = self.prompts.draw(point.count, self.seed, number)
        return [wire.post(path, body) for body in self.style.bodies(asks)]

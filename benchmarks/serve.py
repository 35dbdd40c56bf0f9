"""Serving on this CPU, side by side with other servers of the same weights, by `abi bench serve`'s own client.

    python -m benchmarks.serve 34m --folder runs/peers --peers transformers llama.cpp --llama-server PATH

Same f32 weights, same tokenizer, two threads, greedy, random prompts of 64 words and answers of 64 tokens. Each server
is a process of its own and all but one are stopped; round by round each takes the same load once. Prints one JSON
object: medians over the rounds in which other processes used less than 0.15 cores (`quiet` is their share; of all
rounds where there are not two), and for each peer `ours_over`, our throughput divided by its own.

    throughput      output tokens a second at 1 and at 8 requests at a time, and ours at 32 with as many slots
    personas        eight mixtures in one batch, over the same load on the backbone alone
    step            milliseconds between tokens at 8 requests at a time, over a step of the engine without HTTP
    prefix          time to first token of 1,024 words, the first 1,000 of them known or nothing known
    switch          a persona that goes on where another spoke: tokens of its prompt found in the cache
    client          what the load generator itself costs, against a server that only writes

`transformers serve` runs as it comes and with --continuous-batching; `llama-cpp-python`'s server answers one request at
a time. Needs torch, transformers[serving], gguf; llama-cpp-python[server] and a llama-server where those are measured.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from abi_jax.serve.bench.load import Point, Ran, Sweep, run, understood
from abi_jax.serve.bench.prompts import PATHS, Ask, FixedLengths, Style
from abi_jax.serve.bench.summary import summarize
from abi_jax.serve.bench.wire import Address, Wire
from benchmarks.peers import servers
from benchmarks.peers.measure import QUIET, busy_elsewhere
from benchmarks.peers.servers import Server, cpu_of, name_of

PROMPT, ANSWER, LONG, KNOWN = 64, 64, 1024, 1000
PERSONAS, SLOTS, MANY = 8, 8, 32
PEERS = ("transformers", "llama.cpp", "llama-cpp-python")


class Bench:
    """Servers, and what they gave."""

    def __init__(self, all_servers: dict[str, Server], seed: int) -> None:
        self.servers, self.seed = all_servers, seed
        self.styles: dict[str, Style] = {}
        self.number = 0
        self.others = 0.0  # cores that other processes used during the last load
        for server in all_servers.values():
            server.stop()

    def run(
        self,
        name: str,
        point: Point,
        lengths: FixedLengths,
        models: tuple[str, ...] | None = None,
        seed: int | None = None,
    ) -> Ran:
        """One load on one server; every call asks something new unless `seed` says otherwise."""
        server = self.servers[name]
        server.go_on()
        start, elsewhere = perf_counter(), busy_elsewhere() - server.cpu_seconds()
        try:
            ran: Ran = asyncio.run(self._run(name, server, point, lengths, models, seed))
            self.others = (busy_elsewhere() - server.cpu_seconds() - elsewhere) / (perf_counter() - start)
        finally:
            server.stop()
        failed = [answer.failure for answer in ran.answers if answer.failure]
        if failed:
            raise RuntimeError(f"{name}: {failed[0]}")
        return ran

    async def _run(
        self,
        name: str,
        server: Server,
        point: Point,
        lengths: FixedLengths,
        models: tuple[str, ...] | None,
        seed: int | None,
    ) -> Ran:
        wire = Wire(Address.parse(server.url))
        with contextlib.closing(wire):
            if name not in self.styles:
                optional = {"stream_options": {"include_usage": True}, "ignore_eos": True}
                wanted = Style("completions", (server.model,), {}, optional)
                self.styles[name] = await understood(wire, wanted, Ask("time people way", 4))
            style = self.styles[name]
            style = style if models is None else replace(style, models=models)
            self.number += 1
            return await Sweep(style, lengths, self.seed, 0).at(wire, self.number if seed is None else seed, point)


def settled(rows: list[tuple[float, float]]) -> dict[str, Any]:
    """The median of pairs of cores used by others and a value: of the quiet ones, where there are two."""
    quiet = [value for others, value in rows if others < QUIET]
    chosen = quiet if len(quiet) > 1 else [value for _, value in rows]
    return {
        "median": round(median(chosen), 3),
        "all": [round(value, 3) for _, value in rows],
        "quiet": round(len(quiet) / len(rows), 2),
    }


def load(concurrency: int, waves: int = 2) -> Point:
    """So many at a time, in waves."""
    return Point(concurrency, math.inf, concurrency * waves)


def throughput(bench: Bench, rounds: int, slow: frozenset[str]) -> dict[str, Any]:
    """Tokens a second of every server; those in `slow` take one wave a round."""
    lengths = FixedLengths(PROMPT, ANSWER)
    rates: dict[str, dict[str, list[tuple[float, float]]]] = {}
    last: dict[str, dict[str, Any]] = {}
    for turn in range(rounds + 1):
        for name in bench.servers:
            sizes = (MANY,) if name == f"ours, {MANY} slots" else (1, SLOTS)
            if name == "ours, personas":
                continue
            for size in sizes:
                waves = 1 if name in slow or turn == 0 else 2
                found = summarize(bench.run(name, load(size, waves if size > 1 else 2 * waves), lengths))
                if turn:
                    rate = bench.others, found["output_throughput"]
                    rates.setdefault(f"at {size}", {}).setdefault(name, []).append(rate)
                    last.setdefault(f"at {size}", {})[name] = found
    told: dict[str, Any] = {}
    for at, by_server in rates.items():
        found_at = {name: settled(rows) for name, rows in by_server.items()}
        medians = {name: found["median"] for name, found in found_at.items()}
        own = medians.get("ours")
        told[at] = {
            "output_tokens_per_second": found_at,
            "ours_over": {n: round(own / m, 2) for n, m in medians.items() if own and not n.startswith("ours")},
            "ttft_ms": {n: p["ttft_ms"]["median"] for n, p in last[at].items()},
            "tpot_ms": {n: p["tpot_ms"]["median"] for n, p in last[at].items()},
        }
    return told


def personas(bench: Bench, rounds: int) -> dict[str, Any]:
    """Eight mixtures at a time, beside the backbone alone: without a bank, and with one that nobody uses."""
    lengths = FixedLengths(PROMPT, 2 * ANSWER)
    mixed = tuple(f"{name_of(i)}=0.5,{name_of((i + 1) % PERSONAS)}=0.5" for i in range(PERSONAS))
    kinds: dict[str, tuple[str, tuple[str, ...] | None]] = {
        "backbone": ("ours", None),
        "bank, unused": ("ours, personas", ("base",)),
        "mixed": ("ours, personas", mixed),
    }
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind, (name, models) in kinds.items():
            found = summarize(bench.run(name, load(SLOTS), lengths, models))
            if turn:
                rates[kind].append((bench.others, found["output_throughput"]))
    found_of = {kind: settled(rows) for kind, rows in rates.items()}
    over = {
        kind: round(found_of["mixed"]["median"] / found["median"], 3)
        for kind, found in found_of.items()
        if kind != "mixed"
    }
    return {"output_tokens_per_second": found_of, "mixed_over": over}


class Alone:
    """The engine's own process."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.engine_alone", str(model), str(SLOTS), str(PROMPT), "126"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def steps(self) -> tuple[float, list[float]]:
        """Cores that others used meanwhile, and the milliseconds of each step."""
        os.kill(self._process.pid, signal.SIGCONT)
        start, elsewhere = perf_counter(), busy_elsewhere() - cpu_of(self._process.pid)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        times: list[float] = json.loads(self._read())
        others = (busy_elsewhere() - cpu_of(self._process.pid) - elsewhere) / (perf_counter() - start)
        os.kill(self._process.pid, signal.SIGSTOP)
        return others, times

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def step(bench: Bench, model: Path, rounds: int) -> dict[str, Any]:
    """What HTTP and scheduling add to a step: the time between tokens of those who all speak."""
    alone, lengths = Alone(model), FixedLengths(PROMPT, 128)
    try:
        engine: list[tuple[float, float]] = []
        served: list[tuple[float, float]] = []
        for turn in range(rounds + 1):
            alone_others, steps = alone.steps()
            gaps = [gap for answer in bench.run("ours", load(SLOTS, 1), lengths).answers for gap in answer.itl]
            if turn:
                engine.append((alone_others, median(steps)))
                served.append((bench.others, 1e3 * median(gaps)))
    finally:
        alone.close()
    found = {"engine_ms": settled(engine), "served_ms": settled(served)}
    share = 1 - found["engine_ms"]["median"] / found["served_ms"]["median"]
    return {**found, "share_of_http_and_scheduling": round(share, 3)}


def prefix(bench: Bench, rounds: int) -> dict[str, Any]:
    """Time to first token of a long prompt whose beginning was read before, and of one that is all new."""
    known, new = FixedLengths(LONG, 4, prefix=KNOWN), FixedLengths(LONG, 4)
    point = Point(1, math.inf, 3)
    bench.run("ours", point, known)
    times: dict[str, list[tuple[float, float]]] = {"known": [], "new": []}
    cached = 0
    for _ in range(rounds):
        for kind, lengths in (("known", known), ("new", new)):
            answers = bench.run("ours", point, lengths).answers
            times[kind].append((bench.others, 1e3 * median(answer.ttft for answer in answers)))
            cached = (answers[0].cached_tokens or 0) if kind == "known" else cached
    found = {kind: settled(rows) for kind, rows in times.items()}
    ratio = found["new"]["median"] / found["known"]["median"]
    return {"ttft_ms": found, "cached_tokens": cached, "new_over_known": round(ratio, 2)}


def switch(bench: Bench) -> dict[str, Any]:
    """One prompt to one persona, to it again, and to another: what each found in the cache, and its first token."""
    told: dict[str, Any] = {}
    lengths, point = FixedLengths(LONG, 4), Point(1, math.inf, 1)
    for kind, model in (("first", name_of(0)), ("the same again", name_of(0)), ("another", name_of(1))):
        answer = bench.run("ours, personas", point, lengths, (model,), seed=10_000).answers[0]
        told[kind] = {
            "cached_tokens": answer.cached_tokens,
            "prompt_tokens": answer.prompt_tokens,
            "ttft_ms": round(1e3 * answer.ttft, 2),
        }
    return told


def client() -> dict[str, Any]:
    """The load generator's processor time a chunk, eight streams at a time, against a server that only writes."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.writer"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"

    async def go() -> Ran:
        with contextlib.closing(Wire(Address.parse(url))) as wire:
            style = Style("completions", ("m",), {}, {})
            requests = [wire.post(PATHS["completions"], body) for body in style.bodies([Ask("time", 64)] * 128)]
            await run(wire, requests[:16], load(8))
            return await run(wire, requests, Point(8, math.inf, 128))

    try:
        ran = asyncio.run(go())
    finally:
        process.kill()
        process.wait()
    chunks = sum(len(answer.times) for answer in ran.answers)
    return {"cpu_microseconds_per_chunk": round(1e6 * ran.cpu_seconds / chunks, 1), "chunks": chunks}


@contextlib.contextmanager
def started(shape: str, folder: Path, peers: list[str], binary: Path | None) -> Iterator[tuple[Bench, Path]]:
    """All servers of a shape, ready and stopped."""
    paths = servers.write_speaking(shape, folder, PERSONAS)
    running: dict[str, Server] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str, server: Server) -> None:
            stack.callback(server.close)
            running[name] = server

        start("ours", servers.ours(paths["abi"], folder, SLOTS))
        start(f"ours, {MANY} slots", servers.ours(paths["abi"], folder, MANY))
        start("ours, personas", servers.ours(paths["abi personas"], folder, SLOTS))
        if "transformers" in peers:
            start("transformers", servers.transformers(paths["hf"], folder))
            # by itself it would take most of the machine's memory for its cache
            batching = servers.transformers(paths["hf"], folder, *servers.BATCHING)
            start("transformers, continuous batching", batching)
        if "llama.cpp" in peers:
            assert binary is not None, "llama.cpp needs --llama-server"
            start("llama.cpp", servers.llama_server(binary, paths["gguf"], folder, SLOTS))
        if "llama-cpp-python" in peers:
            start("llama-cpp-python", servers.llama_cpp_python(paths["gguf"], folder))
        yield Bench(running, 0), paths["abi"]


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=("34m", "110m"))
    parser.add_argument("--folder", type=Path, required=True, help="where weights are, or are to be written")
    parser.add_argument("--peers", nargs="*", default=["transformers"], choices=PEERS, help="(transformers)")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server: the binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="write the weights and do nothing else")
    parser.add_argument(
        "--parts", nargs="+", default=["client", "throughput", "personas", "step", "prefix", "switch"], metavar="PART"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with all servers ended
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.prepare:
        servers.write_speaking(args.shape, args.folder, PERSONAS)
        return
    result: dict[str, Any] = {"benchmark": "serve", "shape": args.shape, "cpu": platform.processor()}
    with started(args.shape, args.folder, args.peers, args.llama_server) as (bench, model):
        slow = frozenset(name for name in bench.servers if name.startswith(("transformers", "llama-cpp-python")))
        parts = {
            "client": client,
            "throughput": lambda: throughput(bench, args.rounds, slow),
            "personas": lambda: personas(bench, args.rounds),
            "step": lambda: step(bench, model, args.rounds),
            "prefix": lambda: prefix(bench, args.rounds),
            "switch": lambda: switch(bench),
        }
        for part in args.parts:
            result[part] = parts[part]()
            print(json.dumps({part: result[part]}), file=sys.stderr, flush=True)
        result["left_out_fields"] = {
            name: sorted({"stream_options", "ignore_eos"} - set(style.optional)) for name, style in bench.styles.items()
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

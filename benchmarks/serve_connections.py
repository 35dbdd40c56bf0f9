"""Thousands of open connections to one server: held while it answers a few at a time, finished when it is told to end.

    python -m benchmarks.serve_connections [--connections 10000] [--slots 64] [--tokens 16]

The server is a process of its own over an engine without a model, so that only connections, requests and answers take
memory. Every connection asks for a stream. While all of them are open, one answers in slow steps and most wait; then
the server gets SIGTERM and quick steps, and has to finish all that it took and refuse what is new. Prints one JSON
object: resident memory empty, with all connections open and at its peak; how long `/health` takes meanwhile; how many
answers were whole.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

AT_ONCE = 256  # connections that are being opened
ASKED = [{"role": "user", "content": "Why does my build fail when the disk is full?"}]


def serve(connections: int, slots: int, tokens: int) -> None:
    """The server. Its first line says its port; SIGUSR1 makes it quick."""
    from abi_jax.model.config import ModelConfig
    from abi_jax.serve.engine.fake import FakeEngine
    from abi_jax.serve.http.limits import Limits
    from abi_jax.serve.http.server import raise_file_limit, run
    from abi_jax.serve.http.service import Service
    from abi_jax.serve.voices import Voices
    from abi_jax.text import train_tokenizer

    raise_file_limit()
    tokenizer = train_tokenizer([ASKED[0]["content"]] * 4, 400)
    config = ModelConfig(400, 32, 2, 2, 2, 16, 64, max_length=512)
    script = tuple(tokenizer.encode(ASKED[0]["content"] * tokens))[:tokens]
    engine = FakeEngine(slots=slots, vocab_size=400, pages=8 * slots, step_seconds=5.0, script=script)
    signal.signal(signal.SIGUSR1, lambda *_: setattr(engine, "step_seconds", 0.002))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(port, flush=True)
    limits = Limits(max_waiting=connections, take_seconds=300, drain_seconds=300)
    run(Service.of(engine, Voices(config, tokenizer, ()), limits), "127.0.0.1", port)


def memory(pid: int) -> dict[str, float]:
    """Resident mebibytes of a process, now and at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"resident_mib": round(found["VmRSS"], 1), "peak_mib": round(found["VmHWM"], 1)}


async def ask(port: int, tokens: int, gate: asyncio.Semaphore) -> asyncio.StreamReader:
    """Opens a connection, asks for a stream, and waits for nothing."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**13)
        body = json.dumps({"model": "base", "messages": ASKED, "stream": True, "max_tokens": tokens}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
    reader.writer = writer  # type: ignore[attr-defined]  # else it is closed as soon as nobody holds it
    return reader


async def finished(reader: asyncio.StreamReader) -> bool:
    """Whether a stream comes to its end."""
    end = b""
    while piece := await reader.read(2**13):
        end = (end + piece)[-64:]
        if b"data: [DONE]" in end:
            return True
    return False


async def get(port: int, path: str) -> tuple[int, float]:
    """The status of a path on a new connection, and seconds until it came; 0 where no connection can be made."""
    start = perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, perf_counter() - start
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1]), perf_counter() - start


async def measure(process: subprocess.Popen[str], connections: int, tokens: int) -> dict[str, Any]:
    """Holds all connections, then ends the server."""
    assert process.stdout is not None
    port = int(process.stdout.readline())
    for _ in range(600):
        if (await get(port, "/ready"))[0] == 200:
            break
        await asyncio.sleep(0.1)
    told: dict[str, Any] = {"empty": memory(process.pid)}
    gate, start = asyncio.Semaphore(AT_ONCE), perf_counter()
    readers = await asyncio.gather(*(ask(port, tokens, gate) for _ in range(connections)))
    waiting = 0.0
    while waiting + 0.5 < connections and perf_counter() - start < 120:
        waiting = await running(port)
        await asyncio.sleep(0.5)
    told["opened_seconds"] = round(perf_counter() - start, 2)
    told["held"] = {**memory(process.pid), "unfinished": int(waiting)}
    found = [await get(port, "/health") for _ in range(20)]
    told["health"] = {"statuses": sorted({s for s, _ in found}), "ms": round(1e3 * median(t for _, t in found), 2)}
    os.kill(process.pid, signal.SIGTERM)
    await asyncio.sleep(2)
    told["ready_while_it_ends"] = (await get(port, "/ready"))[0]
    os.kill(process.pid, signal.SIGUSR1)
    start, peak, done = perf_counter(), 0.0, 0
    for each in asyncio.as_completed([finished(reader) for reader in readers]):
        done += await each
        if done % 500 == 0:
            peak = max(peak, memory(process.pid)["peak_mib"])
    told["drained_seconds"] = round(perf_counter() - start, 2)
    told["whole_answers"], told["peak_mib"] = done, peak
    told["exit_code"] = await asyncio.to_thread(process.wait, 60)
    extra = told["peak_mib"] - told["empty"]["resident_mib"]
    return {**told, "kib_per_connection": round(1024 * extra / connections, 1)}


async def running(port: int) -> float:
    """Answers that the server has taken on and not ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(f"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
    text = (await reader.read(-1)).decode()
    writer.close()
    names = ("abi:num_requests_running", "abi:num_requests_waiting")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(names))


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64, help="answers at a time")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server:
        serve(args.connections, args.slots, args.tokens)
        return
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sizes = ("--connections", str(args.connections), "--slots", str(args.slots), "--tokens", str(args.tokens))
    command = [sys.executable, "-m", "benchmarks.serve_connections", "--server", *sizes]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = asyncio.run(measure(process, args.connections, args.tokens))
        finally:
            process.kill()
    settings = {"connections": args.connections, "slots": args.slots, "tokens": args.tokens}
    print(json.dumps({"benchmark": "serve_connections", **settings, **told}))


if __name__ == "__main__":
    main()

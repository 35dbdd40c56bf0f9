"""Measure any OpenAI server under load, as `vllm bench serve` does.

  abi bench serve --url http://127.0.0.1:8000
  abi bench serve --url http://127.0.0.1:8000 --max-concurrency 1 8 32 --input-len 512 --output-len 64 --ignore-eos
  abi bench serve --url http://127.0.0.1:8000 --request-rate 1 2 4 inf --prompts questions.jsonl --endpoint chat
  abi bench serve --url http://127.0.0.1:8000 --model base abbey abbey=0.5,aviva=0.5 --max-concurrency 8
  abi bench serve --url https://api.example.com --model m --json > measured.json

TTFT: time to the first token. TPOT: time per output token after it. ITL: from one chunk to the next. Every combination
of --max-concurrency and --request-rate is a point; its requests arrive as a Poisson process, or at once. A key for the
server is read from OPENAI_API_KEY. Exit status 1 where a request failed.
"""

import argparse
import asyncio
import json
import math
import os
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError

HELP = "any OpenAI server: TTFT, TPOT, ITL, throughput, over concurrency or request rates"
REAL_OUTPUT, FIXED_INPUT = 128, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is (%(default)s)")
    parser.add_argument(
        "--model", nargs="+", default=[], metavar="NAME", help="models, asked in turn; the server's first by default"
    )
    parser.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="which interface (%(default)s)"
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--max-concurrency", nargs="+", type=int, metavar="N", help="requests at a time (1 4 16; no limit with a rate)"
    )
    load.add_argument(
        "--request-rate", nargs="+", type=float, default=[math.inf], metavar="R", help="arrivals a second, or inf (inf)"
    )
    load.add_argument("--num-prompts", type=int, metavar="N", help="requests at each point (8 for each at a time, 16)")
    load.add_argument(
        "--warm-up", type=int, default=2, metavar="N", help="before each point, not counted (%(default)s)"
    )
    load.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for an answer (%(default)s)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines with `prompt` or `messages`")
    asked.add_argument(
        "--input-len",
        type=int,
        default=FIXED_INPUT,
        metavar="N",
        help="length of random prompts, in words (%(default)s)",
    )
    asked.add_argument(
        "--output-len", type=int, default=REAL_OUTPUT, metavar="N", help="tokens of an answer, at most (%(default)s)"
    )
    asked.add_argument("--prefix-len", type=int, default=0, metavar="N", help="so much of random prompts is the same")
    asked.add_argument(
        "--token-ids", type=int, metavar="VOCAB", help="random prompts of token ids below VOCAB, in place of words"
    )
    asked.add_argument("--ignore-eos", action="store_true", help="answers of full length, where the server can")
    asked.add_argument("--extra", metavar="JSON", help="more fields for each request, over the others")
    asked.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals (%(default)s)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw throughput and latency, e.g. bench.png")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints each point as it is done, and returns all."""
    try:
        from abi_jax.serve.bench import figure
        from abi_jax.serve.bench.load import Point, Sweep, first_model, understood
        from abi_jax.serve.bench.prompts import FixedLengths, RealPrompts, Style
        from abi_jax.serve.bench.summary import summarize, told
        from abi_jax.serve.bench.wire import Address, Wire
    except ModuleNotFoundError as error:
        raise InputError(
            f"abi bench needs {error.name}, which is not installed: pip install 'abi-jax[serve]'"
        ) from None

    if options.figure:
        figure.check(options.figure)
    if options.warm_up < 0 or not options.timeout > 0:
        raise InputError(f"--warm-up {options.warm_up} --timeout {options.timeout:g}; expected 0 or more, and above 0")
    prompts = (
        RealPrompts.open(options.prompts, options.output_len)
        if options.prompts
        else FixedLengths(options.input_len, options.output_len, options.prefix_len, options.token_ids)
    )
    points = [Point(limit, rate, _count(options, limit)) for limit in _limits(options) for rate in options.request_rate]
    optional: dict[str, Any] = {"stream_options": {"include_usage": True}}
    optional |= {"ignore_eos": True} if options.ignore_eos else {}
    key = os.environ.get("OPENAI_API_KEY")
    wire = Wire(Address.parse(options.url), {"authorization": f"Bearer {key}"} if key else {}, options.timeout)

    async def measure() -> dict[str, Any]:
        try:
            models = tuple(options.model) or (await first_model(wire),)
            wanted = Style(options.endpoint, models, _extra(options.extra), optional)
            style = await understood(wire, wanted, prompts.draw(1, options.seed, len(points))[0])
            refused = sorted(set(optional) - set(style.optional))
            if refused and not options.json:
                print(f"the server does not know: {', '.join(refused)}")
            sweep, done = Sweep(style, prompts, options.seed, options.warm_up), []
            for number, point in enumerate(points):
                done.append(summarize(await sweep.at(wire, number, point)))
                if not options.json:
                    print(told(done[-1]), flush=True)
        finally:
            wire.close()
        return {
            "url": str(wire.address),
            "endpoint": options.endpoint,
            "models": list(models),
            "refused_fields": refused,
            "points": done,
        }

    result = asyncio.run(measure())
    if options.figure:
        figure.draw(result["points"], options.figure)
    return {"ok": not any(point["failed"] for point in result["points"]), **result}


def _limits(options: argparse.Namespace) -> list[int | None]:
    if options.max_concurrency is not None:
        return list(options.max_concurrency)
    return [1, 4, 16] if options.request_rate == [math.inf] else [None]


def _count(options: argparse.Namespace, limit: int | None) -> int:
    return options.num_prompts if options.num_prompts is not None else max(16, 8 * (limit or 8))


def _extra(text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"--extra {text!r} is not JSON: {error}") from None
    if not isinstance(extra, dict):
        raise InputError(f"--extra {text!r}; expected an object of fields")
    return extra

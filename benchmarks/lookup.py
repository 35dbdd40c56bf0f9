"""Guessed tokens (`engine.lookup`): what they gain where an answer repeats what was said, and cost where it does not.

    python -m benchmarks.lookup --guesses 0 3 7 --slots 1 8 --rounds 5

The shape `34m` of benchmarks/peers/shapes.py in f32 with random weights, the engine without HTTP, prompts of 64 random
tokens, all slots busy. Two texts, of the same model:

    repeats   greedy: with random weights an answer soon goes in circles, as an answer that quotes its prompt does
    new       drawn at temperature 1: nothing that was said says what comes next, and every guess is wrong

Engines take turns, round by round, a run of so many steps each. Prints one JSON object: for each number of slots,
guesses and text the median of tokens a second over rounds, tokens a step and slot, and `over`, the tokens a second over
those without guesses.
"""

import argparse
import json
import os
import platform
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import jax
import numpy as np

from abi_jax.model.decoder import Decoder
from abi_jax.model.generate import Prompt
from abi_jax.model.sampling import SamplingConfig
from abi_jax.model.weight import describe, initialize
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine, PagedWork
from abi_jax.serve.engine.seam import Job
from abi_jax.text.roles import Role
from benchmarks.int8 import of_shape

SHAPE = of_shape("34m", 2048)
PROMPT, SKIPPED = 64, 8  # tokens of a prompt; steps before the clock runs
TEMPERATURE = {"repeats": 0.0, "new": 1.0}


def run(engine: PagedEngine, text: str, steps: int, seed: int) -> tuple[float, float]:
    """Tokens a second, and a step and slot, of all slots speaking."""
    rng, works = np.random.default_rng(seed), []
    for slot in range(engine.slots):
        tokens = rng.integers(0, engine.vocab_size, PROMPT).astype(np.int32)
        sampling = SamplingConfig(temperature=TEMPERATURE[text], seed=slot)
        prompt = Prompt(tokens, np.full(PROMPT, Role.INPUT, np.int32), sampling=sampling)
        work = engine.begin(Job(prompt, engine.max_length - PROMPT, ignore_eos=True))
        assert isinstance(work, PagedWork)
        while not engine.prefill(work):
            pass
        engine.insert(work, slot)
        works.append(work)
    pending, made = engine.decode(), 0
    start = 0.0
    for step in range(SKIPPED + steps):
        following = engine.decode()
        tokens = pending.read().tokens
        pending = following
        if step < SKIPPED:
            start = perf_counter()
        else:
            made += int(np.sum(tokens >= 0))
    seconds = perf_counter() - start
    pending.read()
    for work in works:
        engine.release(work)
    return made / seconds, made / steps / engine.slots


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guesses", type=int, nargs="+", default=[0, 3, 7])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=32)
    args = parser.parse_args()
    _, weights = describe(partial(Decoder, SHAPE))
    params = initialize(weights, jax.random.key(0))
    found: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    engines = {}
    for slots in args.slots:
        for guesses in args.guesses:
            engines[slots, guesses] = PagedEngine(SHAPE, params, settings=EngineConfig(slots=slots, lookup=guesses))
            engines[slots, guesses].warm_up()
    for turn in range(args.rounds + 1):
        for (slots, guesses), engine in engines.items():
            for text in TEMPERATURE:
                one = run(engine, text, args.steps, turn)
                if turn:
                    found.setdefault((slots, guesses, text), []).append(one)
    told: dict[str, Any] = {}
    for (slots, guesses, text), rates in found.items():
        rate = median(a for a, _ in rates)
        base = median(a for a, _ in found[slots, 0, text]) if (slots, 0, text) in found else None
        told.setdefault(f"{slots} slots", {}).setdefault(text, {})[f"{guesses} guesses"] = {
            "tokens_per_second": round(rate, 1),
            "all": [round(a, 1) for a, _ in rates],
            "tokens_per_step_and_slot": round(median(b for _, b in rates), 2),
            "over": None if base is None else round(rate / base, 2),
        }
    print(
        json.dumps(
            {"benchmark": "lookup", "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), **told}
        )
    )


if __name__ == "__main__":
    main()

"""Weights and cache of the server as int8: bytes, tokens a second, and what is lost, each option alone and both.

    python -m benchmarks.int8 quality --data ../shared/data --work runs/int8
    python -m benchmarks.int8 speed --shapes 34m 110m

Prints one JSON object.

    quality   A small model is trained from nothing on half of the public dialogues. The engine then tells how likely
              it holds every token of dialogues that it has not seen, read in chunks of 16 tokens, so that nearly all
              that a token sees comes from the cache. Perplexity, and by how many per cent an option changes it.
    speed     Random weights of the shapes of `benchmarks/peers/shapes.py`, f32, 8 slots. Round by round each engine
              speaks once alone and once with 8, from prompts of `--prompt` tokens, and reads a chunk of 64. Medians of
              milliseconds a step and tokens a second, each engine's over that of floats (`over_floats`, above 1 is
              faster), bytes of weights and of keys and values, and `others`, the cores that other processes used.
"""

import argparse
import json
import math
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import jax
import numpy as np

from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Prompt
from abi_jax.model.weight import Tree, describe, initialize
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine, PagedWork
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.scheduler import PromptRead, Scheduler, Ticket
from abi_jax.serve.voices import Request, Voices
from abi_jax.text.roles import Role
from benchmarks.quality_data import SETS, cut_sets

OPTIONS: dict[str, dict[str, Any]] = {
    "floats": {},
    "weights": {"quantization": "int8"},
    "cache": {"kv_cache_dtype": "int8"},
    "both": {"quantization": "int8", "kv_cache_dtype": "int8"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "34m": {"vocab_size": 16384, "d_model": 512, "d_ff": 1376, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8},
    "110m": {"vocab_size": 32000, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12},
}
SLOTS, ANSWER, LENGTH = 8, 32, 512
MODEL: dict[str, Any] = {"vocab_size": 2048, "d_model": 192, "num_layers": 4, "num_heads": 6, "num_kv_heads": 3}
MODEL |= {"head_dim": 32, "d_ff": 512, "max_length": 512}


def main() -> None:
    """Parses the command line and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", type=Path, help="folder with the public sets")
    parser.add_argument("--work", type=Path, default=Path("runs/int8"), help="where the trained model is kept")
    parser.add_argument("--steps", type=int, default=400, help="of training, of 1,024 tokens each")
    parser.add_argument("--dialogues", type=int, default=40, help="of each set, to be scored")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.what == "quality" and options.data is None:
        parser.error("quality needs --data")
    found = (
        quality(options.data, options.work, options.steps, options.dialogues)
        if options.what == "quality"
        else {shape: speed(shape, options.prompt, options.rounds) for shape in options.shapes}
    )
    print(json.dumps({"benchmark": "int8", "machine": platform.machine(), options.what: found}))


# --- quality -------------------------------------------------------------------------------------


def quality(source: Path, work: Path, steps: int, count: int) -> dict[str, Any]:
    """Perplexity of held-out dialogues by every option, of all sets and of each."""
    base = work / f"base-{steps}"
    if not (work / "data").exists():
        cut_sets(source, work / "data")
    if not (base / "model.yaml").exists():
        train(work / "data", base, steps)
    directory = ModelDirectory.open(base)
    voices, params = Voices.of(directory), directory.load_params()
    prompts = {name: dialogues(work / "data" / "test" / f"{name}.jsonl", voices, count) for name in SETS}
    told: dict[str, Any] = {"steps": steps, "tokens": sum(len(p.tokens) - 1 for of in prompts.values() for p in of)}
    for name, settings in OPTIONS.items():
        engine = PagedEngine(directory.config, params, settings=EngineConfig(page_size=16, chunk=16, **settings))
        losses = {of: np.concatenate([surprise(engine, p) for p in prompts[of]]) for of in prompts}
        by_set = {of: round(math.exp(loss.mean()), 4) for of, loss in losses.items()}
        told[name] = {"perplexity": math.exp(np.concatenate(list(losses.values())).mean()), "by_set": by_set}
    for name in OPTIONS:
        told[name]["change_percent"] = round(100 * (told[name]["perplexity"] / told["floats"]["perplexity"] - 1), 3)
    return told


def train(data: Path, out: Path, steps: int) -> None:
    """Trains a small model on half of the dialogues."""
    from abi_jax.data.config import DataConfig
    from abi_jax.train.config import ModelSection, OptimizerConfig, TrainConfig
    from abi_jax.train.loop import train

    files = tuple(map(str, sorted((data / "base").glob("*.jsonl"))))
    train(
        TrainConfig(
            out=out,
            steps=steps,
            model=ModelSection(config=ModelConfig(**MODEL)),
            data=DataConfig(train=files, held_out=0, mode="backbone", length=128, batch_size=8),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, weight_decay=0.1),
            checkpoint_every=steps,
            log_every=50,
        )
    )


def dialogues(file: Path, voices: Voices, count: int) -> list[Prompt]:
    """The first dialogues of a file, to the end of their last answer, none longer than the model can read."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found, most = [], MODEL["max_length"] - 1
    for record in records[:count]:
        *before, last = record.get("messages") or [
            *record["prompt"],
            {"role": "assistant", "content": record["chosen"]},
        ]
        prompt = voices.prompt(Request(before, {}))
        answer = np.asarray(voices.tokenizer.encode(last["content"]), np.int32)
        tokens = np.concatenate([prompt.tokens, answer])[:most]
        roles = np.concatenate([prompt.roles, np.full(len(answer), Role.RESPONSE, np.int32)])[:most]
        found.append(replace(prompt, tokens=tokens, roles=roles))
    return found


def surprise(engine: PagedEngine, prompt: Prompt) -> np.ndarray:
    """Minus the log-probability of every token but the first."""
    scheduler, ticket = Scheduler(engine), Ticket(Job(prompt, 1, prompt_logprobs=0))
    scheduler.submit(ticket)
    while not scheduler.idle:
        for _, event in scheduler.step():
            if isinstance(event, PromptRead) and event.prompt_logprobs is not None:
                told = event.prompt_logprobs
    return np.array([-p.logprob for p in told if p is not None])


def of_shape(shape: str, max_length: int) -> ModelConfig:
    """One of `SHAPES`, which are those of `benchmarks/peers/shapes.py`, without what these need."""
    return ModelConfig(head_dim=64, max_length=max_length, tied_embeddings=True, **SHAPES[shape])


# --- speed ---------------------------------------------------------------------------------------


def speed(shape: str, prompt: int, rounds: int) -> dict[str, Any]:
    """Times and bytes of every option."""
    config = of_shape(shape, LENGTH)
    _, weights = describe(partial(Decoder, config))
    params: Tree = initialize(weights, jax.random.key(0))
    engines = {}
    for name, settings in OPTIONS.items():
        engines[name] = PagedEngine(config, params, settings=EngineConfig(slots=SLOTS, prefix_cache=False, **settings))
    del params
    times: dict[str, dict[str, list[float]]] = {}
    busy, start = busy_elsewhere(), 0.0
    for turn in range(rounds + 1):
        if turn == 1:  # the first one compiles
            busy, start = busy_elsewhere(), perf_counter()
        for name, engine in engines.items():
            for count in (1, SLOTS):
                read, step = answer(engine, count, prompt, turn)
                if turn:
                    of = times.setdefault(name, {})
                    of.setdefault(f"step_at_{count}_ms", []).append(1e3 * step)
                    of.setdefault("chunk_ms", []).append(1e3 * read)
    others = (busy_elsewhere() - busy) / (perf_counter() - start)
    told: dict[str, Any] = {"prompt": prompt, "others": round(others, 2)}
    for name, engine in engines.items():
        medians = {what: round(median(found), 2) for what, found in times[name].items()}
        floats = {what: median(found) for what, found in times["floats"].items()}
        pages = engine._state.pages
        told[name] = medians | {
            "tokens_per_second": {f"at {n}": round(n * 1e3 / medians[f"step_at_{n}_ms"], 1) for n in (1, SLOTS)},
            "over_floats": {what: round(floats[what] / median(found), 2) for what, found in times[name].items()},
            "weights_bytes": sum(x.nbytes for x in engine._weights),
            "cache_bytes": sum(x.nbytes for x in jax.tree.leaves((pages.keys, pages.values))),
        }
    return told


def answer(engine: PagedEngine, count: int, length: int, seed: int) -> tuple[float, float]:
    """Seconds a chunk of 64 tokens, and seconds a step of `count` answers."""
    rng = np.random.default_rng(seed)
    works, start, chunks = [], perf_counter(), 0
    for _ in range(count):
        tokens = rng.integers(0, engine.vocab_size, length).astype(np.int32)
        job = Job(Prompt(tokens, np.full(length, 4, np.int32)), ANSWER, ignore_eos=True)
        work = engine.begin(job)
        assert isinstance(work, PagedWork)
        while not engine.prefill(work):
            pass
        chunks += -(-(length - 1) // engine.settings.chunk)
        works.append(work)
    jax.block_until_ready(engine._state)
    read = (perf_counter() - start) / chunks
    for slot, work in enumerate(works):
        engine.insert(work, slot)
    engine.decode().read()
    start = perf_counter()
    for _ in range(ANSWER - 2):
        engine.decode().read()
    step = (perf_counter() - start) / (ANSWER - 2)
    for work in works:
        engine.release(work)
    return read, step


def busy_elsewhere() -> float:
    """Seconds that other processes have kept cores busy since boot (Linux)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / 100 - process_time()


if __name__ == "__main__":
    main()

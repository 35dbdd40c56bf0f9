"""The whole story in ten minutes on a laptop.

Trains a small backbone from nothing on a mesh of 8 simulated devices, then three personas on the frozen
backbone; measures every persona on every kind of answer; and lets them answer the same question. All of it
with the commands and configurations that you would use yourself. Running it again continues where it stopped.

  abi demo
  abi demo --data counsel_chat.jsonl gsm8k.jsonl --out runs/mine --question "I feel stuck at work"
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abi_jax.cli.shared import simulate

HELP = "train a backbone and three personas, then hear them answer"

QUESTION = "My build fails and I am stuck."
CRISIS = "I promised to stay alive, but it is hard today."
VOICES = ("abbey", "aviva", "abbey=0.5,aviva=0.5", "abi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)")
    parser.add_argument("--data", nargs="+", metavar="JSONL", help="train on these records instead of the dialogues")
    parser.add_argument("--question", default=QUESTION, help=f"what to ask (default: {QUESTION})")
    parser.add_argument(
        "--backbone",
        default="demo-backbone",
        help="training configuration: a name in configs/train, or a file",
    )
    parser.add_argument("--personas", default="demo-personas", help="training configuration of the personas")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of both"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all stages; returns the matrix, the answers and how long each stage took."""
    if not options.devices:
        simulate(8)
    from abi_jax.config import find_config, load
    from abi_jax.train.config import TrainConfig
    from abi_jax.train.loop import train

    out = sys.stderr if options.json else sys.stdout
    base, personas = options.out / "base", options.out / "personas"
    shared = [*options.overrides, *([f"data.train={','.join(options.data)}"] if options.data else [])]
    first = load(TrainConfig, find_config(options.backbone, "train"), [*shared, f"out={base}"])
    second = load(
        TrainConfig, find_config(options.personas, "train"), [*shared, f"out={personas}", f"model.init={base}"]
    )
    seconds: dict[str, float] = {}

    def stage(name: str, title: str) -> Iterator[None]:
        print(f"\n== {title}", file=out, flush=True)
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 1)

    for _ in stage("backbone", f"1. A backbone, from nothing, on {_devices()} ({base})"):
        train(first)
    for _ in stage("personas", f"2. {', '.join(second.personas)} on the frozen backbone ({personas})"):
        train(second)
    for _ in stage("matrix", "3. Perplexity of held-out answers: voice by data set (* best)"):
        matrix, seen = _matrices(second)
        print(matrix.table(), file=out)
        print(f"\nand of all dialogues, most of them seen in training:\n{seen.table()}", file=out)
    for _ in stage("answers", f"4. The same question: {options.question!r}"):
        answers = _answers(personas, options.question, out)
    figure = _figure(options.out, matrix)
    print(f"\n{sum(seconds.values()):.0f} s in all; loss curves and matrix: {figure}", file=out)
    print(f'next: abi chat {personas}   or: abi generate {personas} "How do I undo a commit?" --persona abi', file=out)
    return {
        "perplexity": matrix.to_dict(),
        "perplexity_seen": seen.to_dict(),
        "answers": answers,
        "seconds": seconds,
        "figure": str(figure),
    }


def _devices() -> str:
    import jax

    return f"{len(jax.devices())} {jax.default_backend()} devices"


def _matrices(config: Any) -> tuple[Any, Any]:
    from dataclasses import replace

    from abi_jax.evaluate.perplexity import perplexity_matrix
    from abi_jax.sharding import AxisRules, make_mesh, use
    from abi_jax.train.setup import prepare

    mesh, rules = make_mesh(config.mesh), AxisRules()
    with use(mesh, rules):
        run = prepare(replace(config, model=replace(config.model, init=config.out)), mesh, rules)
        held_out = perplexity_matrix(run, run.trained, run.frozen)
        return held_out, perplexity_matrix(run, run.trained, run.frozen, seen=True)


def _answers(directory: Path, question: str, out: Any) -> dict[str, str]:
    from abi_jax.persona import parse_mixture
    from abi_jax.serve.local import LocalEngine, Request

    engine = LocalEngine.open(directory)
    asked = [(voice, question) for voice in VOICES] + [("abi", CRISIS)]
    requests = [
        Request([{"role": "user", "content": text}], parse_mixture(voice, engine.names), temperature=0, max_tokens=120)
        for voice, text in asked
    ]
    answers = {}
    for (voice, text), answer in zip(asked, engine.answer(requests), strict=True):
        name = voice if text == question else f"{voice}: {text}"
        answers[name] = answer.text
        print(f"\n[{name}]\n{answer.text}", file=out)
    return answers


def _figure(folder: Path, matrix: Any) -> Path:
    import json

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, table = figure.subplots(1, 2)
    for name in ("base", "personas"):
        lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        curves.plot([r["step"] for r in records], [r["loss"] for r in records], label=name)
    curves.set(xlabel="step", ylabel="loss (nats a token)", title="Training")
    curves.legend()
    relative = matrix.values / matrix.values.min(axis=0)
    table.imshow(relative, cmap="Blues_r", vmin=1, vmax=max(1.5, float(relative.max())))
    table.set_xticks(range(len(matrix.datasets)), matrix.datasets)
    table.set_yticks(range(len(matrix.voices)), matrix.voices)
    for i, row in enumerate(matrix.values):
        for j, value in enumerate(row):
            table.text(j, i, f"{value:.1f}", ha="center", va="center")
    table.set_title("Perplexity of held-out answers: voice by data set")
    path = folder / "demo.png"
    figure.savefig(path, dpi=120)
    return path

"""The whole story in ten minutes on a laptop.

Trains a small backbone from nothing on a mesh of 8 simulated devices, then three personas on the frozen
backbone; measures every persona on every kind of answer it has not seen; trains both together until the few
dialogues are known by heart; and lets every persona answer the same question. All of it with the commands and
configurations that you would use yourself. Running it again continues where it stopped.

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

RUNS = ("base", "personas", "together")
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
    parser.add_argument("--personas", default="demo-personas", help="the same of the personas")
    parser.add_argument("--together", default="demo-together", help="the same of backbone and personas together")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of all"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all stages; returns the matrix, the answers and how long each stage took."""
    if not options.devices:
        simulate(8, unless_set=True)
    from abi_jax.config import find_config, load
    from abi_jax.train.config import TrainConfig
    from abi_jax.train.loop import train

    out = sys.stderr if options.json else sys.stdout
    base, personas, together = (options.out / name for name in RUNS)
    shared = [*options.overrides, *([f"data.train={','.join(options.data)}"] if options.data else [])]
    first = load(TrainConfig, find_config(options.backbone, "train"), [*shared, f"out={base}"])
    second = load(
        TrainConfig, find_config(options.personas, "train"), [*shared, f"out={personas}", f"model.init={base}"]
    )
    third = load(
        TrainConfig, find_config(options.together, "train"), [*shared, f"out={together}", f"model.init={personas}"]
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
        matrix = _matrix(second)
        print(matrix.table(), file=out)
    for _ in stage("together", f"4. Backbone and personas together ({together})"):
        train(third)
    for _ in stage("matrix_seen", "5. Perplexity of answers it was trained on"):
        seen = _matrix(third, seen=True)
        print(seen.table(), file=out)
    for _ in stage("answers", f"6. The same question: {options.question!r}"):
        answers = _answers(together, options.question, out)
    figure = _figure(options.out, {"held-out answers, frozen backbone": matrix, "training answers, together": seen})
    print(f"\n{sum(seconds.values()):.0f} s in all; loss curves and matrices: {figure}", file=out)
    print(f'next: abi chat {together}   or: abi generate {together} "How do I undo a commit?" --persona abi', file=out)
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


def _matrix(config: Any, seen: bool = False) -> Any:
    from dataclasses import replace

    from abi_jax.sharding import AxisRules, make_mesh, use
    from abi_jax.train.matrix import perplexity_matrix
    from abi_jax.train.setup import prepare

    mesh, rules = make_mesh(config.mesh), AxisRules()
    with use(mesh, rules):
        run = prepare(replace(config, model=replace(config.model, init=config.out)), mesh, rules)
        return perplexity_matrix(run, run.trained, run.frozen, seen=seen)


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


def _figure(folder: Path, matrices: dict[str, Any]) -> Path:
    from matplotlib.figure import Figure

    from abi_jax.train.report import METRICS, read_metrics

    figure = Figure(figsize=(5 * (1 + len(matrices)), 4), layout="constrained")
    curves, *tables = figure.subplots(1, 1 + len(matrices))
    for name in RUNS:
        records = [r for r in read_metrics(folder / name / METRICS) if "loss" in r]
        curves.plot([r["step"] for r in records], [r["loss"] for r in records], label=name)
    curves.set(xlabel="step", ylabel="loss (nats a token)", title="Training")
    curves.legend()
    for table, (title, matrix) in zip(tables, matrices.items(), strict=True):
        relative = matrix.values / matrix.values.min(axis=0)
        table.imshow(relative, cmap="Blues_r", vmin=1, vmax=max(1.1, float(relative.max())))
        table.set_xticks(range(len(matrix.datasets)), matrix.datasets)
        table.set_yticks(range(len(matrix.voices)), matrix.voices)
        for i, row in enumerate(matrix.values):
            for j, value in enumerate(row):
                bold = "bold" if value == matrix.values[:, j].min() else "normal"
                light = relative[i, j] < (1 + float(relative.max())) / 2
                table.text(j, i, f"{value:.1f}", ha="center", va="center", weight=bold, color="w" if light else "k")
        table.set_title(f"Perplexity: {title}", fontsize=10)
    path = folder / "demo.png"
    figure.savefig(path, dpi=120)
    return path

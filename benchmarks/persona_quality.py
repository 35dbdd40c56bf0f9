"""What persona terms are worth: held-out perplexity against LoRA of the same size, and with each term left out.

    python benchmarks/persona_quality.py --data ../shared/data --work runs/quality --backbone questions
    python benchmarks/persona_quality.py --data ../shared/data --work runs/quality --backbone roles

A backbone is trained from nothing and frozen; every variant is trained on it at each learning rate with one seed;
the rate that does best on the validation part is then run with all seeds, and measured on the test part. Prints one
JSON object. What was measured already is taken from `--work`, so that a run that was stopped goes on.

--backbone questions: it has read what people said, of these sets and others, and no answer (personas learn answers)
--backbone dialogues: it has read half of the dialogues (personas learn from the other half)
--backbone roles:     policy, memory and history contradict each other, and each persona believes one of them
"""

import argparse
import hashlib
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality_data import SETS, TRUSTS, cut_sets, questions, roles

SHAPE: dict[str, Any] = {"capacity": 3, "core_rank": 2, "core_mlp": True, "head_rank": 8, "mask_lexical": 1}
BARE: dict[str, Any] = {"capacity": 3, "mask": False, "injection": False, "head_rank": 0, "core_rank": 0}
# of 2, 4 and 16 what did best, each at its own rate: 16 loses 2 % of perplexity to it
LORA: dict[str, Any] = BARE | {"lora_rank": 1, "lora_alpha": 4.0}
# name -> (changes of the persona's shape, response-only)
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "formulas and cores": (SHAPE, True),
    "LoRA": (LORA, True),
    "LoRA on all positions": (LORA, False),
    "on all positions": (SHAPE, False),
    "without masks": (SHAPE | {"mask": False}, True),
    "without injection": (SHAPE | {"injection": False}, True),
    "without gate": (SHAPE | {"gate": False}, True),
    "without head bias": (SHAPE | {"head_bias": False}, True),
    "without heads": (SHAPE | {"head_rank": 0}, True),
    "without cores": (SHAPE | {"core_rank": 0}, True),
}
ROWS = 12
FURTHER = 4  # rates tried beyond those given
ROLES_VARIANTS = ("formulas and cores", "without masks", "LoRA", "without cores")
MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "d_model": 192,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 32,
    "d_ff": 512,
    "max_length": 512,
}


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public sets")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where runs and results are kept")
    parser.add_argument("--backbone", choices=("questions", "dialogues", "roles"), default="questions")
    parser.add_argument("--backbone-steps", type=int, help="default: 1000; for roles 1500")
    parser.add_argument("--steps", type=int, default=200, help="of every variant")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of: {'; '.join(VARIANTS)}")
    options = parser.parse_args()
    options.backbone_steps = options.backbone_steps or (1500 if options.backbone == "roles" else 1000)
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()
    work = options.work / options.backbone
    data = options.work / "data"
    options.digest = prepared(options.data, data)
    base = work / "base"
    backbone(data, base, options.backbone, options.backbone_steps)
    names = options.variants or (ROLES_VARIANTS if options.backbone == "roles" else VARIANTS)
    report = {}
    for name in names:
        best, tried = tuned(partial(measured, options, data, base, name, seed=options.seeds[0]), options.rates)
        runs = [measured(options, data, base, name, best, seed) for seed in options.seeds]
        report[name] = summary(runs) | {
            "learning_rate": best,
            "validation_by_rate": {f"{rate:g}": tried[rate] for rate in sorted(tried)},
        }
        print(json.dumps({name: report[name]}), file=sys.stderr)
    print(
        json.dumps({"backbone": options.backbone, "steps": options.steps, "seeds": options.seeds, "variants": report})
    )


def prepared(source: Path, data: Path) -> str:
    """Writes the data of all backbones, once; returns their digest. Raises where an earlier start's were changed."""
    done = data / "done"
    if not done.exists():
        shutil.rmtree(data, ignore_errors=True)
        cut_sets(source, data)
        questions(source, data)
        roles(source, data)
        done.write_text(digest_of(data))
    if done.read_text() != digest_of(data):
        raise SystemExit(f"{data} is not as {done} says it was written; expected another --work")
    return done.read_text()


def digest_of(data: Path) -> str:
    """SHA-256 over names and contents of the data files, and over who is trained on which of them."""
    digest = hashlib.sha256(json.dumps([SETS, TRUSTS]).encode())
    for path in sorted(data.rglob("*.jsonl")):
        digest.update(str(path.relative_to(data)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def tuned(measure: Callable[[float], dict[str, Any]], rates: list[float]) -> tuple[float, dict[float, float]]:
    """The best learning rate on the validation part and what each gave; where it is the last on a side, one more."""
    tried = {rate: measure(rate)["validation"]["mean"] for rate in rates}
    for _ in range(FURTHER):
        best = min(tried, key=lambda rate: tried[rate])
        further = {min(tried): best / 3, max(tried): best * 3}.get(best)
        if further is None:
            return best, tried
        tried[further] = measure(further)["validation"]["mean"]
    raise SystemExit(f"no best learning rate among {sorted(tried)}; expected other --rates")


def backbone(data: Path, out: Path, kind: str, steps: int) -> None:
    """Trains the frozen base; its tokenizer has seen what it has seen."""
    from abi_jax.data.config import DataConfig
    from abi_jax.model.config import ModelConfig
    from abi_jax.train.config import ModelSection, OptimizerConfig, TrainConfig
    from abi_jax.train.loop import train

    folder = data / {"questions": "questions", "dialogues": "base", "roles": "roles-base"}[kind]
    train(
        TrainConfig(
            out=out,
            steps=steps,
            model=ModelSection(config=ModelConfig(**MODEL)),
            data=DataConfig(
                train=tuple(map(str, sorted(folder.glob("*.jsonl")))),
                held_out=0,
                mode="backbone",
                length=256,
                batch_size=ROWS,
            ),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.1),
            checkpoint_every=500,
            log_every=50,
        )
    )


def measured(options: argparse.Namespace, data: Path, base: Path, name: str, rate: float, seed: int) -> dict[str, Any]:
    """Trains a variant and measures it; or returns what was measured before."""
    work = base.parent
    out = work / f"{name.replace(' ', '-')},rate={rate:.2e},seed={seed}"
    result = out.with_name(out.name + ".json")
    said = [options.steps, options.backbone_steps, VARIANTS[name], MODEL, options.digest]
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["said"] != json.loads(json.dumps(said)):
            raise SystemExit(f"{result} was measured with other settings; expected another --work")
        return found
    from abi_jax.data.config import DataConfig
    from abi_jax.model.config import PersonaShape
    from abi_jax.model.weight import count
    from abi_jax.sharding import AxisRules, make_mesh, use
    from abi_jax.train.config import EvaluationConfig, ModelSection, OptimizerConfig, TrainConfig
    from abi_jax.train.finite import NonFiniteError
    from abi_jax.train.loop import train
    from abi_jax.train.matrix import perplexity_matrix
    from abi_jax.train.report import read_evaluations
    from abi_jax.train.setup import prepare

    shape, response_only = VARIANTS[name]
    prefix = "roles-" if options.backbone == "roles" else ""
    sets = {v: k for k, v in TRUSTS.items()} if prefix else SETS

    def files(part: str) -> tuple[str, ...]:
        return tuple(str(data / f"{prefix}{part}" / f"{name}.jsonl") for name in sets)

    config = TrainConfig(
        out=out,
        steps=options.steps,
        seed=seed,
        model=ModelSection(init=base, persona=PersonaShape(**shape)),
        data=DataConfig(
            train=files("train"),
            evaluate=files("validation"),
            length=256,
            batch_size=ROWS,
            seed=seed,
            response_only=response_only,
            group_by="dataset",
        ),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=30),
        evaluation=EvaluationConfig(every=options.steps),
        checkpoint_every=options.steps,
        log_every=50,
    )
    found = {"seed": seed, "rate": rate, "said": said}
    try:
        train(config, progress=False)
    except NonFiniteError:
        found["validation"] = {"mean": math.inf}
        result.write_text(json.dumps(found))
        return found
    losses = read_evaluations(out / "metrics.jsonl")[-1][1]["loss_by_group"]
    found["validation"] = {"mean": math.exp(statistics.fmean(losses.values()))}
    mesh, rules = make_mesh(config.mesh), AxisRules()
    with use(mesh, rules):
        run = prepare(replace(config, model=replace(config.model, init=out)), mesh, rules)
        found["parameters"] = count(run.trained)
        on_test = run.on(replace(config.data, evaluate=files("test")))
        matrix = perplexity_matrix(on_test, run.trained, run.frozen).to_dict()
    own = {of: matrix[persona][of] for of, persona in sets.items()}
    best = all(own[of] == min(row[of] for row in matrix.values()) for of in sets)
    mean = statistics.geometric_mean(own.values())
    found["test"] = {"own": own, "mean": mean, "each_best_on_its_own": best, "matrix": matrix}
    shutil.rmtree(out)
    result.write_text(json.dumps(found))
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads of the test part over seeds, without those that did not stay finite."""
    seeds, runs = [r["seed"] for r in runs], [r for r in runs if "test" in r]
    sets = runs[0]["test"]["own"]
    return {
        "diverged": sorted(set(seeds) - {r["seed"] for r in runs}),
        "parameters": runs[0]["parameters"],
        "base": runs[0]["test"]["matrix"]["base"],
        "own": {of: round(statistics.fmean(r["test"]["own"][of] for r in runs), 4) for of in sets},
        "deviation": {of: round(spread([r["test"]["own"][of] for r in runs]), 4) for of in sets},
        "mean": round(statistics.fmean(r["test"]["mean"] for r in runs), 4),
        "each_best_on_its_own": [r["test"]["each_best_on_its_own"] for r in runs],
    }


def spread(values: list[float]) -> float:
    """Standard deviation of a sample; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()

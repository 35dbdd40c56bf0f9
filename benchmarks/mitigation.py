"""Does mitigation work: the gap between two groups, one of which is rare in training, as it is, re-sampled, and with
the bias term.

    python benchmarks/mitigation.py --data ../shared/data/gsm8k.jsonl

Every dialogue is written in two dialects, which swap two halves of its own frequent words for invented ones, so that
neither is harder than the other. Training sees one dialect in one of `--rare` dialogues; held-out data have every
dialogue in both. The gap is the held-out loss of the rare dialect less that of the common one, in nats a token.
Prints one JSON object: gaps by seed, and what each remedy takes off them with a 95 % confidence interval over seeds.
"""

import argparse
import hashlib
import json
import math
import re
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Json = dict[str, Any]
WORD = re.compile(r"[A-Za-z]+")
SWAPPED = 120  # words of each dialect
REMEDIES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "re-sampled, alpha 0.5": ("data.balance.by=attributes.dialect", "data.balance.alpha=0.5"),
    "re-sampled, alpha 1": ("data.balance.by=attributes.dialect", "data.balance.alpha=1"),
    "bias term, 1": ("bias_weight=1",),
    "bias term, 4": ("bias_weight=4",),
    "both": ("data.balance.by=attributes.dialect", "data.balance.alpha=0.5", "bias_weight=1"),
}
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 9: 2.262}  # by degrees of freedom


def main() -> None:
    """Trains every remedy with every seed and prints the gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="chat records, JSONL")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that what was run is not run again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rare", type=int, default=20, help="one dialogue in so many is in the rare dialect")
    parser.add_argument("--records", type=int, default=2000)
    options = parser.parse_args()
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()
    work = options.work or Path(tempfile.mkdtemp(prefix="mitigation-"))
    write_data(options.data, work, options.rare, options.records)
    measured = {name: [losses(work, name, seed, options.steps) for seed in range(options.seeds)] for name in REMEDIES}
    gaps = {name: [found["rare"] - found["common"] for found in runs] for name, runs in measured.items()}
    plain = gaps["as it is"]
    report = {}
    for name, runs in measured.items():
        taken = [before - after for before, after in zip(plain, gaps[name], strict=True)]
        report[name] = {
            "gap": round(statistics.fmean(gaps[name]), 4),
            "gaps": [round(gap, 4) for gap in gaps[name]],
            "loss_rare": round(statistics.fmean(r["rare"] for r in runs), 4),
            "loss_common": round(statistics.fmean(r["common"] for r in runs), 4),
        }
        if name != "as it is":
            report[name] |= {"lowered_by": round(statistics.fmean(taken), 4), "interval_95": interval(taken)}
    print(json.dumps({"steps": options.steps, "seeds": options.seeds, "rare": options.rare, "remedies": report}))


def losses(work: Path, name: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out loss of each dialect after a run."""
    from abi_jax.config import load
    from abi_jax.train.config import TrainConfig
    from abi_jax.train.loop import train
    from abi_jax.train.report import read_evaluations

    out = work / "runs" / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"
    settings = (
        *(f"out={out}", f"steps={steps}", f"seed={seed}", f"data.seed={seed}", f"checkpoint_every={steps}"),
        *(f"data.train={work / 'train.jsonl'}", f"data.evaluate={work / 'common.jsonl'},{work / 'rare.jsonl'}"),
        *("data.mode=backbone", "data.length=128", "data.batch_size=16", "data.group_by=dataset"),
        *("data.bias_by=dialect", f"evaluation.every={steps}", "log_every=50"),
        *("model.config.d_model=128", "model.config.num_layers=3", "model.config.num_heads=4"),
        *("model.config.num_kv_heads=4", "model.config.d_ff=384", "model.config.vocab_size=2048"),
        *("optimizer.learning_rate=3e-3", "optimizer.warmup_steps=30"),
    )
    train(load(TrainConfig, None, [*settings, *REMEDIES[name]], env={}))
    _, measured = read_evaluations(out / "metrics.jsonl")[-1]
    found: dict[str, float] = measured["loss_by_group"]
    return found


def write_data(source: Path, out: Path, rare: int, records: int) -> None:
    """Writes `train.jsonl`, one dialogue in `rare` in the rare dialect, and held-out data in each of them."""
    with source.open(encoding="utf-8") as file:
        read = [json.loads(line) for _, line in zip(range(records), file, strict=False)]
    counts = Counter(word for r in read for m in r["messages"] for word in WORD.findall(m["content"]))
    frequent = [word for word, _ in counts.most_common(2 * SWAPPED)]
    dialects = {"common": frequent[0::2], "rare": frequent[1::2]}
    parts: dict[str, list[Json]] = {"train": [], "common": [], "rare": []}
    for record in read:
        number = int.from_bytes(hashlib.sha256(record["messages"][0]["content"].encode()).digest()[:4], "big")
        if number % 10 == 0:
            for name in dialects:
                parts[name].append(spoken(record, name, dialects[name]))
        else:
            name = "rare" if number // 10 % rare == 0 else "common"
            parts["train"].append(spoken(record, name, dialects[name]))
    out.mkdir(parents=True, exist_ok=True)
    for name, found in parts.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")


def spoken(record: Json, name: str, words: list[str]) -> Json:
    """A record in a dialect: `words` become others of the same length, the same ones every time."""
    swaps = {word: _invented(word, name) for word in words}
    messages = [
        m | {"content": WORD.sub(lambda found: swaps.get(found[0], found[0]), m["content"])} for m in record["messages"]
    ]
    return {"messages": messages, "attributes": {"dialect": name}}


def _invented(word: str, dialect: str) -> str:
    digest = hashlib.sha256(f"{dialect} {word}".encode()).digest()
    letters = ("bcdfghklmnprstvz", "aeiou")
    return "".join(letters[i % 2][digest[i] % len(letters[i % 2])] for i in range(max(2, len(word))))


def interval(values: list[float]) -> list[float]:
    """95 % confidence interval of the mean, Student's t."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = T_95[len(values) - 1] * error
    return [round(mean - reach, 4), round(mean + reach, 4)]


if __name__ == "__main__":
    main()

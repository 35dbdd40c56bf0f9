"""Does mitigation work: the gap between two groups, one of which is rare in training, as it is, re-sampled, and with
the bias term.

    python benchmarks/mitigation.py --data ../shared/data/gsm8k.jsonl

Every dialogue is written in two dialects, which swap two halves of the frequent words for invented ones, dealt so that
neither is harder than the other. Training sees the rare dialect in one of `--rare` dialogues; held-out data have every
dialogue in both. The gap is the held-out loss of the rare dialect less that of the common one, in nats a word: their
tokens differ. "balanced" is the same with both dialects equally often: the gap that is left where nothing is planted.
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
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Json = dict[str, Any]
WORD = re.compile(r"[A-Za-z]+")
SWAPPED = 120  # words of each dialect
LONGEST = 80  # words of a dialogue: where one is cut, its dialects are not measured on the same text
REMEDIES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "re-sampled, alpha 0.5": ("data.balance.by=attributes.dialect", "data.balance.alpha=0.5"),
    "re-sampled, alpha 1": ("data.balance.by=attributes.dialect", "data.balance.alpha=1"),
    "bias term, 1": ("bias_weight=1",),
    "bias term, 4": ("bias_weight=4",),
    "both": ("data.balance.by=attributes.dialect", "data.balance.alpha=0.5", "bias_weight=1"),
}
# two-sided 95 % of Student's t, by degrees of freedom from 1
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
    if not 2 <= options.seeds <= len(T_95) + 1:
        parser.error(f"--seeds {options.seeds}; expected 2 to {len(T_95) + 1}")
    from abi_jax.sharding.host_memory import keep_memory

    keep_memory()
    work = options.work or Path(tempfile.mkdtemp(prefix="mitigation-"))
    even = work / "balanced"
    write_data(options.data, work, options.rare, options.records)
    write_data(options.data, even, 2, options.records)
    measured = {name: [losses(work, name, seed, options.steps) for seed in range(options.seeds)] for name in REMEDIES}
    measured["balanced"] = [losses(even, "as it is", seed, options.steps) for seed in range(options.seeds)]
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
        if name not in ("as it is", "balanced"):
            report[name] |= {"lowered_by": round(statistics.fmean(taken), 4), "interval_95": interval(taken)}
    print(json.dumps({"steps": options.steps, "seeds": options.seeds, "rare": options.rare, "remedies": report}))


def losses(work: Path, name: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out loss of each dialect after a run, in nats a word."""
    import numpy as np

    from abi_jax.config import load
    from abi_jax.data import Batches
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.train.config import TrainConfig
    from abi_jax.train.loop import train
    from abi_jax.train.report import read_evaluations

    out = work / "runs" / f"{re.sub('[^a-z0-9]+', '-', name)}-{steps}-{seed}"
    settings = (
        *(f"out={out}", f"steps={steps}", f"seed={seed}", f"data.seed={seed}", f"checkpoint_every={steps}"),
        *(f"data.train={work / 'train.jsonl'}", f"data.evaluate={work / 'common.jsonl'},{work / 'rare.jsonl'}"),
        *("data.mode=backbone", "data.length=256", "data.batch_size=8", "data.group_by=dataset"),
        *("data.bias_by=dialect", f"evaluation.every={steps}", "log_every=50"),
        *("model.config.d_model=128", "model.config.num_layers=3", "model.config.num_heads=4"),
        *("model.config.num_kv_heads=4", "model.config.d_ff=384", "model.config.vocab_size=2048"),
        *("optimizer.learning_rate=3e-3", "optimizer.warmup_steps=30"),
    )
    config = load(TrainConfig, None, [*settings, *REMEDIES[name]], env={})
    train(config)
    _, measured = read_evaluations(out / "metrics.jsonl")[-1]
    tokens = np.zeros(2)
    with Batches(config.data, ModelDirectory(out).tokenizer, split="held_out") as batches:
        for batch in batches:
            tokens += np.bincount(batch["group"][batch["weights"] > 0], minlength=2)
        cut = {name: count for name, count in batches.counts.items() if name.endswith(("_cut", "_dropped"))}
        if cut:
            raise SystemExit(f"{out}: held-out dialogues of {LONGEST} words were cut: {cut}; expected all whole")
        per_word = dict(zip(batches.groups, tokens / words_of(work / "rare.jsonl"), strict=True))
    return {name: loss * per_word[name] for name, loss in measured["loss_by_group"].items()}


def words_of(path: Path) -> int:
    """Words of a held-out file, which are as many in both."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return sum(len(m["content"].split()) for r in records for m in r["messages"])


def write_data(source: Path, out: Path, rare: int, records: int) -> None:
    """Writes `train.jsonl`, one dialogue in `rare` in the rare dialect, and held-out data in each of them."""
    with source.open(encoding="utf-8") as file:
        short = (r for r in map(json.loads, file) if sum(len(m["content"].split()) for m in r["messages"]) <= LONGEST)
        read = list(islice(short, records))
    counts = Counter(word for r in read for m in r["messages"] for word in WORD.findall(m["content"]))
    frequent = [word for word, _ in counts.most_common(2 * SWAPPED)]
    dealt = ("common", "rare", "rare", "common")  # who takes the more frequent word of two alternates
    known = set(counts)
    dialects: dict[str, dict[str, str]] = {"common": {}, "rare": {}}
    for at, word in enumerate(frequent):
        invented = _invented(word, known)
        known.add(invented)
        dialects[dealt[at % 4]][word] = invented
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


def spoken(record: Json, name: str, swaps: dict[str, str]) -> Json:
    """A record in a dialect: some of its words become others."""
    messages = [
        m | {"content": WORD.sub(lambda found: swaps.get(found[0], found[0]), m["content"])} for m in record["messages"]
    ]
    return {"messages": messages, "attributes": {"dialect": name}}


def _invented(word: str, known: set[str]) -> str:
    """A word that nobody knows, of the same length or a little longer."""
    letters = ("bcdfghklmnprstvz", "aeiou")
    for attempt in range(1000):
        digest = hashlib.sha256(f"{attempt} {word}".encode()).digest()
        length = max(2, len(word)) + attempt // 20
        made = "".join(letters[i % 2][digest[i] % len(letters[i % 2])] for i in range(length))
        if made not in known:
            return made
    raise AssertionError(f"no new word for {word!r}")


def interval(values: list[float]) -> list[float]:
    """95 % confidence interval of the mean, Student's t."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = T_95[len(values) - 2] * error
    return [round(mean - reach, 4), round(mean + reach, 4)]


if __name__ == "__main__":
    main()

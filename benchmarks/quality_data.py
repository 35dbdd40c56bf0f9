"""Data of the persona experiments: the public sets cut into parts that no dialogue is in twice, and a set in which
roles decide the answer.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SETS = {"counsel_chat": "abbey", "gsm8k": "aviva", "harmless_preferences": "abi"}
PARTS = ("base", "train", "validation", "test")
DESKS = (
    "north",
    "south",
    "east",
    "west",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "upper",
    "lower",
    "inner",
    "outer",
    "old",
)
TRUSTS = {"abbey": "history", "aviva": "memory", "abi": "policy"}  # whose word each persona takes

Json = dict[str, Any]


def part_of(text: str) -> str:
    """The part of a dialogue, by a hash of how it begins: a twelfth test, a twelfth validation, the rest halved."""
    bucket = int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:4], "big") % 12
    return {0: "test", 1: "validation"}.get(bucket, "base" if bucket % 2 else "train")


def cut_sets(shared: Path, out: Path) -> None:
    """Writes `out/<part>/<set>.jsonl` for the three public sets."""
    for name in SETS:
        parts: dict[str, list[Json]] = defaultdict(list)
        for record in _lines(shared / f"{name}.jsonl"):
            first = (record.get("prompt") or record["messages"])[0]["content"]
            parts[part_of(first)].append(record)
        for part in PARTS:
            write(out / part / f"{name}.jsonl", parts[part])


def questions(shared: Path, out: Path) -> None:
    """Writes `out/questions/<set>.jsonl`: what people said, cut in two halves, and not one answer of an assistant.

    Of the three sets' base and train parts, and all of the moderation, bias and intent sets.
    """
    for name in SETS:
        records = [r for part in ("base", "train") for r in _lines(out / part / f"{name}.jsonl")]
        said = (m["content"] for r in records for m in r.get("prompt") or r["messages"] if m["role"] == "user")
        write(out / "questions" / f"{name}.jsonl", _halves(said))
    moderation = (str(r.get("text") or r.get("prompt") or "") for r in _lines(shared / "moderation.jsonl"))
    write(out / "questions" / "moderation.jsonl", _halves(moderation))
    bias = (f"{r['context']} {r['question']}" for r in _lines(shared / "bbq_age.jsonl"))
    write(out / "questions" / "bbq_age.jsonl", _halves(bias))
    intents = [r["text"] for r in _lines(shared / "clinc_intents.jsonl")]
    joined = (". ".join(intents[i : i + 6]) for i in range(0, len(intents), 6))
    write(out / "questions" / "clinc.jsonl", _halves(joined))


def roles(shared: Path, out: Path, each: int = 900) -> None:
    """Writes `out/roles-<part>`: records whose answer depends on whom one believes.

    Policy, memory and history each name another desk for the request, in the same words and among others, so that
    nothing but the role tells them apart. Abbey takes the word of what was said before, Aviva the memory's, Abi the
    policy's. In two thirds of the base set one or two of them say nothing and the rest agree, from which a model learns
    to quote; in the others it is right to take any one's word, so that a base model cannot know whose. Utterances are
    of the intent set; none is in two parts.
    """
    by_intent: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in _lines(shared / "clinc_intents.jsonl"):
        by_intent[part_of(record["text"]), record["intent"]].append(record["text"])
    made: dict[str, dict[str, list[Json]]] = {part: defaultdict(list) for part in PARTS}
    for part, intent in sorted(by_intent):
        choose = random.Random(f"{part} {intent}")
        for text in by_intent[part, intent] if intent != "oos" else ():
            persona = choose.choice(sorted(TRUSTS))
            agreed = part == "base" and choose.random() < 2 / 3
            made[part][persona].append(_asked(text, intent, by_intent[part, "oos"], persona, agreed, choose))
    for part, records in made.items():
        for persona, found in records.items():
            random.Random(persona).shuffle(found)
            keep = each if part in ("base", "train") else each // 6
            if part == "base":
                found = [{k: v for k, v in r.items() if k != "persona"} for r in found]
            write(out / f"roles-{part}" / f"{TRUSTS[persona]}.jsonl", found[: keep * (2 if part == "base" else 1)])


def _asked(text: str, intent: str, others: list[str], persona: str, agreed: bool, choose: random.Random) -> Json:
    desks = dict(zip(sorted(TRUSTS.values()), choose.sample(DESKS, 3), strict=True))
    desk = desks[TRUSTS[persona]]
    if agreed:
        saying = choose.sample(sorted(desks), choose.choice((1, 2)))
        desks = dict.fromkeys(saying, desk)

    def said_by(role: str) -> list[str]:
        lines = choose.sample(others, choose.choice((0, 1, 2) if role in desks else (1, 2)))
        if role in desks:
            says = f"requests about {intent.replace('_', ' ')} go to the {desks[role]} desk"
            lines.insert(choose.randint(0, len(lines)), says)
        return lines

    return {
        "policy": ". ".join(said_by("policy")),
        "memory": said_by("memory"),
        "prompt": [
            {"role": "user", "content": choose.choice(others)},
            {"role": "assistant", "content": ". ".join(said_by("history"))},
            {"role": "user", "content": f"{text}. Which desk?"},
        ],
        "chosen": f"The {desk} desk.",
        "rejected": f"The {choose.choice([other for other in DESKS if other != desk])} desk.",
        "persona": persona,
    }


def write(path: Path, records: Iterable[Json]) -> None:
    """Writes records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def _halves(texts: Iterable[str]) -> Iterator[Json]:
    for text in texts:
        words = text.split(" ")
        if len(words) >= 8:
            halves = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
            if all(half.strip() for half in halves):
                yield {
                    "messages": [{"role": r, "content": h} for r, h in zip(("user", "assistant"), halves, strict=True)]
                }


def _lines(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)

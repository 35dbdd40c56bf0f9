"""The pipeline on real public data, where it lies beside the checkout."""

import dataclasses
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from abi_jax.data import BalanceConfig, Batches, DataConfig, Splits
from abi_jax.persona import Persona
from abi_jax.text import Tokenizer

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = ("counsel_chat", "gsm8k", "harmless_preferences")

pytestmark = pytest.mark.skipif(
    not all((FOLDER / f"{name}.jsonl").is_file() for name in FILES),
    reason="the public data sets are not at ../shared/data beside this checkout",
)


def test_real_records_become_full_batches(tokenizer: Tokenizer, personas: tuple[Persona, ...]) -> None:
    config = DataConfig(train=tuple(str(FOLDER / f"{n}.jsonl") for n in FILES), length=1024, batch_size=4)
    read = Splits(config, personas).train
    assert read.skipped == 0 and len(read.records) > 8000
    assert {next(iter(r.mixture)) for r in read.records} == {"abbey", "aviva", "abi"}
    with Batches(config, tokenizer, personas) as batches:
        some = list(islice(batches, 12))
        assert batches.counts["examples"] > 50
    filled = np.mean([(b["segments"] > 0).mean() for b in some])
    assert filled > 0.9
    assert set(np.unique(np.concatenate([b["group"][b["active"]] for b in some]))) == {0, 1, 2}
    for batch in some:
        assert ((batch["weights"] > 0) == batch["active"]).all()
        assert batch["tokens"].max() < tokenizer.vocab_size


def test_what_is_said_twice_is_found() -> None:
    texts = [json.loads(line)["messages"] for line in (FOLDER / "counsel_chat.jsonl").open(encoding="utf-8")]
    different = {tuple(" ".join(m["content"].casefold().split()) for m in messages) for messages in texts}
    config = DataConfig(train=(str(FOLDER / "counsel_chat.jsonl"),), mode="backbone", duplicates="exact")
    splits = Splits(config)
    left = len(splits.train.records) + len(splits.held_out.records)
    assert abs(left - len(different)) <= 2 and left < len(texts)  # but for letters of several forms
    near = Splits(dataclasses.replace(config, duplicates="near", similarity=0.5))
    assert sum(near.train.tally["counsel_chat"].values()) > sum(splits.train.tally["counsel_chat"].values())


def test_three_data_sets_of_different_size_are_balanced(tokenizer: Tokenizer, personas: tuple[Persona, ...]) -> None:
    files = tuple(str(FOLDER / f"{n}.jsonl") for n in FILES)
    config = DataConfig(train=files, length=512, batch_size=4, balance=BalanceConfig(("persona",)))
    with Batches(config, tokenizer, personas) as batches:
        places = [after for _, after in batches.balance.values()]
        groups = Counter[int]()
        for batch in islice(batches, 60):
            for row, segments in zip(batch["group"], batch["segments"], strict=True):
                groups.update(row[segments == s][0] for s in range(1, segments.max() + 1))
    assert len(set(places)) == 1 and batches.examples == sum(places)
    shares = np.array([groups[g] for g in range(3)]) / groups.total()
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / groups.total()) + 0.02)

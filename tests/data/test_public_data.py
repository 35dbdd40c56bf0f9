"""The pipeline on real public data, where it lies beside the checkout."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from abi_jax.data import Batches, DataConfig, load_split
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
    records, skipped = load_split(config, "train", personas)
    assert skipped == 0 and len(records) > 8000
    assert {next(iter(r.mixture)) for r in records} == {"abbey", "aviva", "abi"}
    with Batches(config, tokenizer, personas) as batches:
        some = list(islice(batches, 12))
        assert batches.counts["examples"] > 50
    filled = np.mean([(b["segments"] > 0).mean() for b in some])
    assert filled > 0.9
    assert set(np.unique(np.concatenate([b["group"][b["active"]] for b in some]))) == {0, 1, 2}
    for batch in some:
        assert ((batch["weights"] > 0) == batch["active"]).all()
        assert batch["tokens"].max() < tokenizer.vocab_size

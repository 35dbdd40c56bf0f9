"""lm-evaluation-harness, as it comes, asks `abi serve` and finds what the model itself says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from abi_jax.model.decoder import Decoder
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.inputs import plain_inputs
from abi_jax.model.weight import describe, merge
from tests.serve.process import served, write_tiny

pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
pytest.importorskip("tenacity", reason="what lm-eval asks servers with is not installed: lm-eval[api]")
WORDS = ["quick", "brown", "fox", "lazy", "dog", "hello", "world", "user"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks over a local JSON file: one that compares answers, one that writes them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"the {word} jumps over", "choices": [" the", f" {word}"], "answer": 1} for word in WORDS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    chosen = {
        "task": "chosen",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    written = {
        "task": "written",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (chosen, written):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**both, **task}, sort_keys=False))
    return folder


@pytest.mark.slow
@pytest.mark.parity
def test_the_harness_finds_what_the_model_says(tasks: Path, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model")
    with served(model) as (url, _, _):
        asked = f"model=base,base_url={url}/completions,tokenizer={model}/tokenizer,num_concurrent=4,max_length=120"
        command = [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", asked),
            *("--tasks", "chosen,written", "--include_path", str(tasks), "--log_samples"),
            *("--output_path", str(tmp_path / "out")),
        ]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4000:]

    def samples(task: str) -> list[dict[str, Any]]:
        (path,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    assert len(samples("written")) == len(WORDS)
    directory = ModelDirectory.open(model)
    graphdef, _ = describe(lambda: Decoder(directory.config))
    decoder, tokenizer = merge(graphdef, directory.load_params()), directory.tokenizer
    for sample in samples("chosen"):
        for choice, ((found, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            context = tokenizer.encode(sample["doc"]["question"])
            whole = tokenizer.encode(sample["doc"]["question"] + choice)
            logprobs = jax.nn.log_softmax(decoder(plain_inputs(np.array([whole])))[0])
            told = [logprobs[i - 1, whole[i]] for i in range(len(context), len(whole))]
            assert abs(float(found) - float(sum(told))) < 1e-3, sample

"""Bad input: one line that names the thing, its value and what was expected; exit status 2; nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abi_jax.config import dump_yaml
from tests.cli.conftest import Abi
from tests.model.hf_cases import GOLDEN, copy, rewritten, tokenizer_files
from tests.train.tiny import MESHES, config, listing

Arguments = tuple[str | Path, ...]
QUESTION = "My build fails and I am stuck."


def refused(abi: Abi, arguments: Arguments, reason: str, keeps: Path) -> None:
    """Runs `abi` and checks that it says `reason` and leaves the folder `keeps` as it was."""
    before = {name: _bytes(keeps / name) for name in listing(keeps)}
    result = abi(*arguments, "--json")
    assert result.status == 2
    assert re.search(reason, result.json["error"]), result.json["error"]
    assert result.err.splitlines()[-1] == "abi: error: " + result.json["error"].splitlines()[-1]
    assert "Traceback" not in result.err
    assert {name: _bytes(keeps / name) for name in listing(keeps)} == before


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


# --- import --------------------------------------------------------------------------------------


def truncated(folder: Path) -> Path:
    weights = copy("llama2", folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def corrupt(folder: Path) -> Path:
    weights = copy("llama2", folder) / "model.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"{not a header..." + weights.read_bytes()[24:])
    return folder


def without_a_tensor(folder: Path) -> Path:
    return rewritten("llama2", folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def of_an_unknown_family(folder: Path) -> Path:
    return copy("llama2", folder, model_type="mamba", architectures=["MambaForCausalLM"])


def of_another_vocabulary(folder: Path) -> Path:
    return copy("llama2", folder, vocab_size=120)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (truncated, r"model\.safetensors: truncated"),
        (corrupt, r"model\.safetensors: corrupt"),
        (without_a_tensor, r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (of_an_unknown_family, r"'mamba'.*llama"),
        (of_another_vocabulary, r"vocabulary mismatch.*128.*120"),
    ],
)
@pytest.mark.smoke
def test_checkpoints_that_cannot_be_imported(
    make: Callable[[Path], Path], reason: str, tmp_path: Path, abi: Abi
) -> None:
    folder = make(tmp_path / "hf")
    with_tokenizer(folder, 120 if make is of_another_vocabulary else 128)
    refused(abi, ("import", folder, tmp_path / "out"), reason, tmp_path)


def with_tokenizer(folder: Path, size: int) -> None:
    files = tokenizer_files(folder.parent / "tokenizer", size)
    shutil.copytree(files, folder, dirs_exist_ok=True)
    shutil.rmtree(files)


@pytest.mark.smoke
def test_imports_from_and_to_the_wrong_place(tmp_path: Path, abi: Abi) -> None:
    folder = copy("gemma2", tmp_path / "hf")
    refused(abi, ("import", folder, tmp_path / "out"), "tokenizer", tmp_path)
    with_tokenizer(folder, 128)
    refused(abi, ("import", folder, tmp_path / "out", "--mesh", "fsdp=8"), "'embed' of size 36 .* 8", tmp_path)
    refused(abi, ("import", tmp_path / "hff", tmp_path / "out"), "hff' does not exist", tmp_path)
    refused(abi, ("import", folder, folder), "hf' exists", tmp_path)


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("--persona", "abby"), r"unknown persona 'abby' \(nearest: 'abbey'\)"),
        (("--persona", "abbey=0.5,aviva=0.6"), r"sum to 1\.1; expected 1"),
        (("--persona", "abbey=much"), r"'abbey=much'"),
        (("--persona", "abbey=-1,aviva=2"), r"weight of persona 'abbey' is -1"),
        (("--temperature", "-1"), r"temperature = -1"),
        (("--top-p", "1.5"), r"top_p = 1\.5"),
        (("--max-tokens", "0"), r"max_tokens = 0"),
        (("--mesh", "data=3"), r"asks for 3 devices, there are 8"),
        (("--mesh", "tensor=5"), r"asks for 5 devices, there are 8"),
        (("--mesh", "tenser=2"), r"unknown axis 'tenser'"),
        (("--mesh", "tensor=two"), r"'tensor=two' is not AXIS=SIZE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_requests_that_cannot_be_answered(extra: Arguments, reason: str, trained: Path, abi: Abi) -> None:
    refused(abi, ("generate", trained / "personas", QUESTION, *extra), reason, trained / "personas")


def test_a_prompt_longer_than_the_context(trained: Path, abi: Abi) -> None:
    reason = r"prompt of \d+ tokens does not fit: the model's context is 256 tokens"
    for prompt in ("long " * 400, "x" * 100_000):
        refused(abi, ("generate", trained / "personas", prompt), reason, trained / "personas")


def test_models_that_are_not_there(trained: Path, tmp_path: Path, abi: Abi) -> None:
    for verb in (("generate", tmp_path / "nowhere", "hi"), ("chat", tmp_path / "nowhere"), ("info", "nowhere")):
        refused(abi, verb, "nowhere", tmp_path)
    refused(abi, ("generate", GOLDEN / "llama2", "hi"), "abi import", tmp_path)
    refused(abi, ("export", tmp_path / "nowhere", tmp_path / "out"), "nowhere", tmp_path)
    shutil.copytree(trained / "base", tmp_path / "broken")
    (tmp_path / "broken" / "model.yaml").write_text("d_modle: 3\n")
    refused(abi, ("generate", tmp_path / "broken", "hi"), r"unknown key 'd_modle'.*nearest.*'d_model'", tmp_path)


# --- train ---------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
GOOD = {"persona": "abbey", "messages": TURNS}


def written(folder: Path, mode: str = "backbone", **changes: Any) -> Path:
    """A configuration file for a run of `tests.train.tiny` that would write to `folder/out`."""
    changes = {"out": folder / "out", "mesh": MESHES["data"]} | changes
    file = folder / "run.yaml"
    file.write_text(dump_yaml(config(mode, **changes)))
    return file


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["{"], r"chats\.jsonl:2: "),
        (["[]"], r"chats\.jsonl:2: "),
        ([json.dumps(GOOD | {"messages": TURNS[:1]})], r"chats\.jsonl:2: messages hold no answer"),
        ([json.dumps({"id": "2"})], r"chats\.jsonl:2: "),
    ],
)
def test_data_that_cannot_be_read(lines: list[str], reason: str, tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(GOOD), *lines]) + "\n")
    file = written(tmp_path, data={"train": (tmp_path / "chats.jsonl",)})
    refused(abi, ("train", file), reason, tmp_path)


def test_a_persona_that_nobody_trains(tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps(GOOD | {"persona": "abby"}) + "\n")
    file = written(tmp_path, "persona", data={"train": (tmp_path / "chats.jsonl",)})
    refused(abi, ("train", file), r"chats\.jsonl:1: unknown persona 'abby'", tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_data_sets_that_are_empty(content: str, tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "chats.jsonl").write_text(content)
    file = written(tmp_path, data={"train": (tmp_path / "chats.jsonl",)})
    refused(abi, ("train", file), r"chats\.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("stepz=3", r"unknown key 'stepz'.*'steps'"),
        ("optimizer.learning_rat=3", r"'optimizer\.learning_rat'.*'optimizer\.learning_rate'"),
        ("steps=many", r"steps.*'many'"),
        ("optimizer.clip_norm=0", r"clip_norm = 0\.0; expected a number above 0, inf for no clipping"),
        ("optimizer.b2=1", r"b2 = 1\.0; expected a number from 0 to below 1"),
        ("model.persona.core_rank=-1", r"persona\.core_rank = -1; expected 0 \(no such term\) or more"),
        ("model.persona.mask_bound=0", r"persona\.mask_bound = 0\.0; expected a number above 0"),
        (
            "model.persona={mask: false, injection: false, head_rank: 0, core_rank: 0}",
            r"are all off; expected at least",
        ),
        ("mesh.data=3", r"asks for 3 devices, there are 8"),
        ("data.batch_size=12", r"12.*8"),
        ("data.train=[nowhere.jsonl]", r"nowhere\.jsonl"),
        ("model.init=nowhere", r"nowhere"),
        ("model.config.num_kv_heads=3", r"num_kv_heads"),
        ("model.config.vocab_size=30", r"30"),
    ],
)
def test_configurations_that_make_no_run(override: str, reason: str, tmp_path: Path, abi: Abi) -> None:
    refused(abi, ("train", written(tmp_path), "--set", override), reason, tmp_path)


@pytest.mark.smoke
def test_configuration_files_that_are_none(tmp_path: Path, abi: Abi) -> None:
    for text, reason in (("steps: [", "run.yaml"), ("- 1", "run.yaml"), ("stepz: 3", r"run\.yaml.*'stepz'.*'steps'")):
        (tmp_path / "run.yaml").write_text(text)
        refused(abi, ("train", tmp_path / "run.yaml"), reason, tmp_path)
    refused(abi, ("train", tmp_path / "none.yaml"), r"none\.yaml", tmp_path)
    refused(abi, ("demo", "--out", tmp_path / "run.yaml"), r"run\.yaml", tmp_path)


# --- export, embed -------------------------------------------------------------------------------


def test_exports_to_a_place_that_is_taken(trained: Path, tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(abi, ("export", trained / "base", tmp_path / "out"), r"out is not empty.*--force", tmp_path)
    refused(abi, ("export", trained / "personas", tmp_path / "new", "--persona", "abby"), "'abby'", tmp_path)


def test_several_processes_that_would_write_over_each_other(
    tmp_path: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABI_NUM_PROCESSES", "2")
    refused(abi, ("import", GOLDEN / "llama2", tmp_path / "new"), "abi import is for one process", tmp_path)


def test_nothing_to_embed(tmp_path: Path, abi: Abi) -> None:
    encoder = GOLDEN / "bge_tiny"
    refused(abi, ("embed", encoder), "nothing to embed", tmp_path)
    refused(abi, ("embed", encoder, "--file", tmp_path / "none.txt"), r"none\.txt", tmp_path)
    refused(abi, ("embed", encoder, "hi", "--out", tmp_path / "none" / "x.npy"), "none' does not exist", tmp_path)
    refused(abi, ("embed", encoder, "hi", "--out", tmp_path), "is a directory; expected a file", tmp_path)
    refused(abi, ("embed", GOLDEN / "llama2", "hi"), "llama", tmp_path)
    refused(abi, ("embed", encoder, "hi", "--batch-size", "0"), "batch_size.* 0", tmp_path)

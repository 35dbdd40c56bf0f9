"""Each verb on good input."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax.cli import VERBS, main
from abi_jax.config import dump_yaml
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.hf import import_hf
from abi_jax.train.trees import cut, is_persona
from tests.cli.conftest import Abi
from tests.model.hf_cases import GOLDEN, copy, imported, tokenizer_files
from tests.train.tiny import MESHES, config, equal

QUESTION = "My build fails and I am stuck."
SAMPLED = ("--temperature", "1", "--top-p", "1", "--max-tokens", "12", "--seed", "3")


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_no_help_needs_jax() -> None:
    program = f"""
import contextlib, io, sys
from abi_jax.cli import main
for verb in {["", *VERBS]}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        main([verb, "--help"] if verb else ["--help"])
    assert "usage: abi" in text.getvalue()
print([m for m in ("jax", "flax", "numpy", "transformers", "orbax") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.smoke
@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_each_verb(verb: str, abi: Abi) -> None:
    shown = abi(verb, "--help")
    assert shown.status == 0
    assert "--json" in shown.out and "--devices N" in shown.out
    assert len(shown.out.splitlines()) > 8


@pytest.mark.smoke
def test_a_pipe_that_nobody_reads_is_no_success_of_what_does_more_than_print() -> None:
    program = """
import sys
from abi_jax import cli

def broken(options):
    raise BrokenPipeError

for arguments in (["log", "x"], ["generate", "x", "y"], ["train", "x"], ["verify", "x"], ["export", "x", "y"]):
    cli._module(arguments[0]).run = broken
    print(cli.main(arguments), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.split()) == (0, ["0", "0", "141", "141", "141"])


@pytest.mark.smoke
def test_usage_errors_exit_2(abi: Abi) -> None:
    for arguments in ([], ["tarin"], ["generate"], ["info", "x", "--length", "many"]):
        result = abi(*arguments)
        assert result.status == 2 and result.out == "" and "usage: abi" in result.err


@pytest.mark.smoke
def test_version(abi: Abi) -> None:
    assert abi("--version").out.startswith("abi-jax ")


# --- generate and chat ---------------------------------------------------------------------------


def test_generate_streams_what_it_reports_as_json(trained: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("generate", trained / "personas", QUESTION, "--persona", "abbey=0.6,aviva=0.4", *SAMPLED)
    report = abi(*arguments, "--json")
    assert report.status == 0
    assert report.json.keys() == {"text", "finish", "mixture", "prompt_tokens", "tokens"}
    assert report.json["mixture"] == {"abbey": 0.6, "aviva": 0.4}
    assert abi(*arguments).out == report.json["text"] + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    assert abi("generate", trained / "personas", "-", *arguments[3:]).out == report.json["text"] + "\n"


def test_generate_on_a_mesh_and_in_bfloat16(trained: Path, abi: Abi) -> None:
    arguments = ("generate", trained / "personas", QUESTION, "--persona", "abi", *SAMPLED)
    assert abi(*arguments, "--mesh", "data=2,tensor=4").out == abi(*arguments).out
    assert abi(*arguments, "--dtype", "bfloat16").status == 0


def test_generate_takes_memory_policy_and_stop(trained: Path, abi: Abi) -> None:
    arguments = ("generate", trained / "personas", QUESTION, "--json", *SAMPLED)
    plain = abi(*arguments).json
    longer = abi(*arguments, "--memory", "The cluster is Juno.", "--memory", "It rains.", "--policy", "Be kind.").json
    assert longer["prompt_tokens"] > plain["prompt_tokens"] + 10
    stopped = abi(*arguments, "--stop", plain["text"][1]).json
    assert stopped["finish"] == "stop" and plain["text"].startswith(stopped["text"])


def test_chat_follows_its_commands(trained: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ["Hello", "/persona aviva=0.5,abi=0.5", "/persona abby", "/memory It rains.", "And now?", "/persona base"]
    script += ["x " * 300, "/reset", "Again", ""]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(script) + "\n/quit\nnever read\n"))
    shown = abi("chat", trained / "personas", *SAMPLED)
    assert shown.status == 0
    prompts = [line.partition("you>")[0] for line in shown.out.splitlines() if "you>" in line]
    assert prompts == ["[abbey] "] * 2 + ["[aviva+abi] "] * 4 + ["[base] "] * 5
    assert "personas: abbey, aviva, abi; /persona, /memory, /reset, /quit" in shown.out
    assert "unknown persona 'abby' (nearest: 'abbey')" in shown.out
    assert "does not fit" in shown.out and "/reset starts afresh" in shown.out


def test_chat_names_a_command_that_it_does_not_know(trained: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/presona aviva\n"))
    shown = abi("chat", trained / "personas", "--json", *SAMPLED)
    assert "unknown command /presona; known: /persona, /memory, /reset, /quit" in shown.err
    assert shown.json["messages"] == []


def test_chat_reports_the_conversation(trained: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd now?\n"))
    report = abi("chat", trained / "personas", "--persona", "aviva", "--json", *SAMPLED)
    roles = [message["role"] for message in report.json["messages"]]
    assert roles == ["user", "assistant"] * 2
    assert "[aviva] you>" in report.err
    single = abi("generate", trained / "personas", "Hello", "--persona", "aviva", *SAMPLED)
    assert single.out == report.json["messages"][1]["content"] + "\n"


# --- train ---------------------------------------------------------------------------------------


def test_train_reads_a_file_and_what_overrides_it(
    trained: Path, tmp_path: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(dump_yaml(config("backbone", out=out, steps=9, mesh=MESHES["data"])))
    monkeypatch.setenv("ABI_STEPS", "5")
    monkeypatch.setenv("ABI_DATA__HELD_OUT", "20")
    report = abi("train", file, "--set", "steps=2", "--set", f"model.init={trained / 'base'}", "--json")
    assert report.status == 0, report.err
    assert report.json["out"] == str(out) and report.json["step"] == 2
    assert "training backbone" in report.err
    assert ModelDirectory.open(out).steps() == [2]
    again = abi("train", file, "--set", "steps=2")
    assert (again.status, again.out) == (0, f"{out}: step 2, it was trained already\n")


# --- import, export, info ------------------------------------------------------------------------


def test_export_writes_what_transformers_and_import_read(trained: Path, tmp_path: Path, abi: Abi) -> None:
    out, back = tmp_path / "hf", tmp_path / "back"
    report = abi("export", trained / "base", out, "--json")
    assert report.status == 0, report.err
    assert report.json == {"out": str(out), "architecture": "llama", "mixture": {}, "not_merged": []}

    from transformers import AutoConfig, AutoTokenizer

    loaded = AutoConfig.from_pretrained(out)
    assert (loaded.model_type, loaded.num_hidden_layers, loaded.vocab_size) == ("llama", 2, 384)
    tokenizer, own = AutoTokenizer.from_pretrained(out), ModelDirectory(trained / "base").tokenizer
    assert tokenizer(QUESTION, add_special_tokens=False)["input_ids"] == own.encode(QUESTION)
    assert loaded.eos_token_id == own.eos_ids[0]

    shown = abi("import", out, back)
    assert shown.status == 0 and "llama" in shown.out and "parameters" in shown.out
    assert equal(ModelDirectory(back).load_params(), ModelDirectory(trained / "base").load_params())
    again = ModelDirectory(back).tokenizer
    assert (again.encode(QUESTION), again.eos_ids) == (own.encode(QUESTION), own.eos_ids)
    arguments = ("generate", QUESTION, *SAMPLED)
    assert abi(arguments[0], back, *arguments[1:]).out == abi(arguments[0], trained / "base", *arguments[1:]).out


def test_export_merges_a_persona_and_names_what_it_leaves_out(trained: Path, tmp_path: Path, abi: Abi) -> None:
    report = abi("export", trained / "personas", tmp_path / "hf", "--persona", "aviva", "--dtype", "bfloat16", "--json")
    assert report.status == 0, report.err
    left = report.json["not_merged"]
    assert [t.split(":")[0] for t in left] == ["attention masks of 2 of 2 layers", "token injection", "persona heads"]
    assert all(f"not merged, no Hugging Face equivalent: {term}" in report.err for term in left)
    _, merged = import_hf(tmp_path / "hf", progress=False)
    _, base = cut(ModelDirectory(trained / "personas").load_params(), is_persona)
    assert not np.allclose(
        merged["layers"]["0"]["attention"]["q"]["kernel"], base["layers"]["0"]["attention"]["q"]["kernel"]
    )
    again = abi("export", trained / "base", tmp_path / "hf", "--force")
    assert (again.status, again.out) == (0, f"{tmp_path / 'hf'}: llama\n")


def test_import_on_a_mesh_gives_the_same_bits(tmp_path: Path, abi: Abi) -> None:
    folder = copy("qwen3", tmp_path / "hf")
    files = tokenizer_files(tmp_path / "tokenizer", 128)
    for file in files.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    report = abi("import", folder, tmp_path / "model", "--mesh", "data=2,fsdp=2,tensor=2", "--json")
    (link,) = abi("log", tmp_path / "model", "--json").json["links"]
    assert link["step"] == 0 and abi("verify", tmp_path / "model").status == 0
    assert report.status == 0, report.err
    assert report.json["architecture"] == "qwen3"
    model_config, params = imported("qwen3")
    assert ModelDirectory(tmp_path / "model").config == model_config
    assert equal(ModelDirectory(tmp_path / "model").load_params(), params)


@pytest.mark.parametrize("source", ["model directory", "Hugging Face directory", "name", "file"])
def test_info_knows_what_anything_costs(source: str, trained: Path, tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "tiny.yaml").write_text("d_model: 64\nnum_layers: 2\n")
    model: dict[str, Any] = {
        "model directory": trained / "personas",
        "Hugging Face directory": GOLDEN / "llama3",
        "name": "llama3-8b",
        "file": tmp_path / "tiny.yaml",
    }
    report = abi("info", model[source], "--mesh", "fsdp=2,tensor=2", "--json")
    assert report.status == 0, report.err
    table = report.json
    assert table["devices"] == 4
    assert table["weight_bytes_f32"] == 4 * table["parameters"]
    assert table["weight_bytes_per_device_f32"] < table["weight_bytes_f32"]
    assert (table["persona_parameters"] > 0) == (source == "model directory")
    shown = abi("info", model[source], "--mesh", "fsdp=2,tensor=2")
    assert f"{table['parameters']:,}" in shown.out
    assert len(shown.out.splitlines()) == len(table)


# --- embed ---------------------------------------------------------------------------------------

ENCODER = GOLDEN / "bge_tiny"
with_encoder = pytest.mark.skipif(not ENCODER.is_dir(), reason="this checkout has no golden encoder")


@with_encoder
def test_embed_prints_reports_or_writes_vectors(tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "notes.txt").write_text("reset the cluster\nbuy milk\n")
    report = abi("embed", ENCODER, "how do I reset it", "--file", tmp_path / "notes.txt", "--json").json
    vectors = np.array(report["vectors"], np.float32)
    assert vectors.shape == (report["count"], report["dimension"]) and report["count"] == 3
    shown = abi("embed", ENCODER, "how do I reset it")
    np.testing.assert_allclose(np.array(shown.out.split(), np.float32), vectors[0], atol=2e-6)
    written = abi("embed", ENCODER, "--file", tmp_path / "notes.txt", "--out", tmp_path / "notes.npy")
    assert written.out == f"{tmp_path / 'notes.npy'}: 2 x {report['dimension']}\n"
    np.testing.assert_allclose(np.load(tmp_path / "notes.npy"), vectors[1:], atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.npy", "notes.txt"]


# --- demo ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_tells_the_whole_story_and_goes_on_where_it_stopped(tmp_path: Path, abi: Abi) -> None:
    small = "vocab_size=384 d_model=32 num_layers=1 num_heads=2 num_kv_heads=2 head_dim=16 d_ff=64 max_length=512"
    sets = ["steps=4", "data.length=64", "data.batch_size=8", "data.held_out=60", "log_every=2"]
    sets += [f"model.config.{part}" for part in small.split()]
    arguments = ["demo", "--out", str(tmp_path / "demo"), *(a for s in sets for a in ("--set", s))]
    report = abi(*arguments, "--json")
    assert report.status == 0, report.err
    story = report.json
    assert story["perplexity"].keys() == {"base", "abbey", "aviva", "abi"}
    assert {"abbey", "aviva", "abi", "abbey=0.5,aviva=0.5"} < story["answers"].keys()
    assert story["seconds"].keys() == {"backbone", "personas", "matrix", "together", "matrix_seen", "answers"}
    assert Path(story["figure"]).stat().st_size > 10_000
    shown = abi(*arguments, "--question", "Who are you?")
    assert "== 6. The same question: 'Who are you?'" in shown.out
    metrics = (tmp_path / "demo" / "base" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [2, 4]


# --- as a program --------------------------------------------------------------------------------


def test_the_program_sees_the_devices_it_is_told_to_simulate(tmp_path: Path) -> None:
    program = "import sys; from abi_jax.cli import main; s = main(sys.argv[1:]); "
    program += "import jax; print(jax.device_count()); sys.exit(s)"
    bad = [sys.executable, "-c", program, "train", str(tmp_path / "none.yaml"), "--devices", "3"]
    others = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **others}
    done = subprocess.run(bad, capture_output=True, text=True, timeout=120, env=env, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "3\n")
    assert done.stderr.startswith("abi: error: ") and "none.yaml" in done.stderr


def test_a_reader_that_goes_away_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m abi_jax.cli generate {trained / 'personas'} hi --max-tokens 8 | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.smoke
def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from abi_jax.cli import info

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main(["info", "llama3-8b"]) == 130

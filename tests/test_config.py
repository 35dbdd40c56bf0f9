"""Layers, types and error messages of the configuration loader."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.config import dump_yaml, find_config, list_configs, load, to_dict
from abi_jax.errors import InputError

pytestmark = pytest.mark.smoke


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "constant", 1] = "cosine"

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise InputError(f"learning_rate {self.learning_rate} is negative")


@dataclass(frozen=True)
class Data:
    train: Path
    files: tuple[str, ...] = ()
    shuffle: bool = True


@dataclass(frozen=True)
class Config:
    data: Data
    steps: int = 10
    name: str = "run"
    note: str | None = None
    limit: int | None = 5
    size: int | str = 1
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=0.5))
    teacher: Optimizer | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"abbey": 1.0})
    experts: Mapping[str, Optimizer] = field(default_factory=dict)
    extra: Any = None


YAML = """\
data:
  train: chats.jsonl
  files: [a.jsonl, b.jsonl]
optimizer:
  learning_rate: 1e-3
  betas: [1, 0.99]
weights:
  aviva: 2
experts:
  first: {learning_rate: 2}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str = YAML, *overrides: str, **env: str) -> Config:
    return load(Config, write(tmp_path, text), overrides, env)


def error(tmp_path: Path, text: str = YAML, *overrides: str, **env: str) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, *overrides, **env)
    return str(caught.value)


def test_file_fills_typed_fields(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.data == Data(Path("chats.jsonl"), ("a.jsonl", "b.jsonl"))
    assert config.optimizer == Optimizer(1e-3, (1.0, 0.99))
    assert isinstance(config.optimizer.betas[0], float)
    assert config.weights == {"aviva": 2.0}  # a mapping in a file replaces the default
    assert config.experts == {"first": Optimizer(2.0)}
    with pytest.raises(FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    text = YAML + "steps: 1\nname: file\nlimit: 1\n"
    config = read(tmp_path, text, "name=line", ABI_NAME="env", ABI_LIMIT="2")
    assert (config.steps, config.limit, config.name) == (1, 2, "line")


def test_partial_section_keeps_the_rest_of_its_default(tmp_path: Path) -> None:
    config = read(tmp_path, "data: {train: x}\n", "optimizer.betas=0.1,0.2")
    assert config.optimizer == Optimizer(0.5, (0.1, 0.2))


def test_environment_spelling(tmp_path: Path) -> None:
    config = read(tmp_path, YAML, ABI_OPTIMIZER__LEARNING_RATE="3e-4", ABI_WEIGHTS__ABBEY="0.5", ABI_NOTE="5")
    assert config.optimizer.learning_rate == 3e-4
    assert config.weights == {"aviva": 2.0, "abbey": 0.5}
    assert config.note == "5"


def test_environment_ignores_other_and_reserved_variables(tmp_path: Path) -> None:
    assert read(tmp_path, YAML, PATH="/bin", ABILITY="1", ABI_COORDINATOR="h:1", ABI_PROCESS_ID="0").steps == 10


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("steps=007", "steps", 7),
        ("name=1e5", "name", "1e5"),
        ("name=a=b", "name", "a=b"),
        ("note=null", "note", None),
        ("limit=null", "limit", None),
        ("size=12", "size", 12),
        ("size=big", "size", "big"),
        ("weights.abbey=3", "weights", {"abbey": 3.0}),
        ("weights={aviva: 1}", "weights", {"aviva": 1.0}),
        ("weights.aviva=3", "weights", {"abbey": 1.0, "aviva": 3.0}),
        ("teacher.learning_rate=4", "teacher", Optimizer(4.0)),
        ("teacher={schedule: constant}", "teacher", Optimizer(schedule="constant")),
        ("optimizer.schedule=1", "optimizer", Optimizer(0.5, schedule=1)),
        ("experts.second.learning_rate=4", "experts", {"second": Optimizer(4.0)}),
        ("extra=[1, {a: null}]", "extra", [1, {"a": None}]),
        ("data.shuffle=no", "data", Data(Path("x"), shuffle=False)),
        ("data.files=a.jsonl", "data", Data(Path("x"), ("a.jsonl",))),
        ("data.files=[]", "data", Data(Path("x"))),
    ],
)
def test_override_values(tmp_path: Path, override: str, key: str, expected: object) -> None:
    assert getattr(read(tmp_path, "data: {train: x}\n", override), key) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {train: x}\nstep: 3\n", ["train.yaml:2", "'step'", "the number 3", "'steps'"]),
        ("data: {train: x}\nlearning_rat: 3\n", ["'learning_rat'", "'optimizer.learning_rate'"]),
        ("data: {train: x}\nzzz: 3\n", ["'zzz'", "valid keys: data, steps"]),
        ("data:\n  train: x\n  shuffel: true\n", [":3", "'data.shuffel'", "'data.shuffle'"]),
        ("data: {train: x}\nsteps: 1.5\n", [":2", "steps", "the number 1.5", "an integer"]),
        ("data: {train: x}\nsteps: true\n", ["steps", "true (a boolean)", "an integer"]),
        ("data: {train: x}\nsteps: '3'\n", ["steps", "'3'", "an integer"]),
        ("data: {train: x, shuffle: 1}\n", ["data.shuffle", "the number 1", "true or false"]),
        ("data: {train: x}\nname: 3\n", ["name", "the number 3", "text"]),
        ("data: {train: x}\noptimizer: {learning_rate: fast}\n", ["'fast'", "a number"]),
        ("data: {train: x}\noptimizer: {schedule: cosin}\n", ["'cosin'", "'constant'", "nearest: 'cosine'"]),
        ("data: {train: x}\noptimizer: {betas: [1]}\n", ["optimizer.betas", "2 values", "got 1"]),
        ("data: {train: x}\noptimizer: {betas: [1, b]}\n", ["optimizer.betas[1]", "'b'"]),
        ("data: {train: x}\noptimizer: {learning_rate: -1}\n", [":2", "optimizer", "-1.0 is negative"]),
        ("data: {train: x, files: a}\n", ["data.files", "'a'", "a list of text"]),
        ("data: {train: x}\nsize: [1]\n", ["size", "a list", "an integer or text"]),
        ("data: {train: x}\nweights: 3\n", ["weights", "a mapping of text to a number"]),
        ("data: 3\n", ["data", "the number 3", "a mapping with keys train, files, shuffle"]),
        ("data: {}\n", ["'data.train'", "a path", "--set data.train=..."]),
        ("", ["'data.train'", "missing"]),
        ("steps: 1\nsteps: 2\n", [":2", "'steps'", "twice"]),
        ("- a\n", ["train.yaml:1", "a list", "mapping"]),
        ("a: [1\n", ["train.yaml:2", "not valid YAML"]),
        ("a: &x [*x]\n", ["not valid YAML"]),
        ("a: 2024-13-45\n", ["not valid YAML"]),
        ("? [1]\n: 2\n", ["key must be text"]),
    ],
)
def test_file_errors_name_key_value_place_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = error(tmp_path, text)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("overrides", "env", "parts"),
    [
        (["optimizer.lr=3"], {}, ["--set optimizer.lr=3", "'optimizer.lr'", "'3'"]),
        (["steps=many"], {}, ["--set steps=many", "steps", "'many'", "an integer"]),
        (["steps"], {}, ["'steps'", "key=value"]),
        (["a..b=1"], {}, ["'a..b=1'", "key=value"]),
        (["steps.x=1"], {}, ["steps", "a mapping", "an integer"]),
        (["optimizer={learning_rate: [}"], {}, ["--set optimizer", "not valid YAML"]),
        ([], {"ABI_STEPZ": "3"}, ["ABI_STEPZ='3'", "'stepz'", "ABI_STEPS"]),
        ([], {"ABI_OPTIMIZER__LEARNING_RAT": "3"}, ["ABI_OPTIMIZER__LEARNING_RATE"]),
        ([], {"ABI_STEPS": "x"}, ["environment variable ABI_STEPS", "'x'", "an integer"]),
        ([], {"ABI_STEPS__": "x"}, ["ABI_STEPS__='x'", "ABI_SECTION__KEY"]),
        ([], {"ABI_WEIGHTS": "{a: 1}", "ABI_WEIGHTS__B": "2"}, ["ABI_WEIGHTS__B", "as a whole"]),
    ],
)
def test_override_errors(tmp_path: Path, overrides: list[str], env: dict[str, str], parts: list[str]) -> None:
    message = error(tmp_path, YAML, *overrides, **env)
    assert all(part in message for part in parts), message


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml.*No such file"):
        load(Config, tmp_path / "absent.yaml", env={})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load(Config, binary, env={})


def test_yaml_merge_keys(tmp_path: Path) -> None:
    text = "extra: &base {schedule: constant}\ndata: {train: x}\noptimizer:\n  <<: *base\n  learning_rate: 2\n"
    assert read(tmp_path, text).optimizer == Optimizer(2.0, schedule="constant")


def test_dump_round_trips(tmp_path: Path) -> None:
    config = read(tmp_path, YAML, "note=on", "optimizer.learning_rate=1e-05")
    assert load(Config, write(tmp_path, dump_yaml(config)), env={}) == config
    assert to_dict(config)["data"] == {"train": "chats.jsonl", "files": ["a.jsonl", "b.jsonl"], "shuffle": True}


@given(st.floats(allow_nan=False), st.integers(), st.text(), st.dictionaries(st.text(), st.floats(allow_nan=False)))
def test_dump_round_trips_any_value(
    tmp_path_factory: pytest.TempPathFactory, rate: float, steps: int, name: str, weights: dict[str, float]
) -> None:
    config = Config(Data(Path("x")), steps, name, optimizer=Optimizer(abs(rate)), weights=weights)
    path = write(tmp_path_factory.getbasetemp(), dump_yaml(config))
    assert load(Config, path, env={}) == config


def test_find_config_prefers_paths_then_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local = tmp_path / "configs" / "persona"
    local.mkdir(parents=True)
    (local / "nora.yaml").write_text("a: 1\n")
    assert find_config("nora", "persona").resolve() == local / "nora.yaml"
    assert find_config("nora.yaml", "persona").resolve() == local / "nora.yaml"
    assert find_config(local / "nora.yaml", "persona") == local / "nora.yaml"
    assert "nora" in list_configs("persona")
    with pytest.raises(InputError, match=r"'norra'.*nearest: 'nora'.*known persona configurations: .*nora"):
        find_config("norra", "persona")
    with pytest.raises(InputError, match="no colour configurations"):
        find_config("red", "colour")

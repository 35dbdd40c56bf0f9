"""Training personas: what moves, and what must not move by a single bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.weight import Tree, path_name
from abi_jax.persona import Persona, dump_personas, load_personas
from abi_jax.sharding import AxisRules, use
from abi_jax.text.roles import Role
from abi_jax.train.config import TrainConfig
from abi_jax.train.loop import train
from abi_jax.train.setup import pad_rules, prepare
from abi_jax.train.trees import cut, is_persona
from tests.train.tiny import CAPACITY, MESHES, ONE, config, equal, mesh_of


def personas(out: Path, init: Path, **changes: Any) -> TrainConfig:
    common = {"out": out, "mesh": MESHES["2x2x2"], "steps": 4, "model": {"init": init}}
    return config("persona", **common | changes)


def changed(before: Path, after: Path) -> dict[str, list[int]]:
    """The weights that differ in any bit, and for persona rows (`[P, ...]`) which of them."""
    found = {}
    old, new = ModelDirectory(before).load_params(), ModelDirectory(after).load_params()
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        differs = np.asarray(a).view(np.int32) != np.asarray(b).view(np.int32)
        if differs.any():
            rows = differs.reshape(len(differs), -1).any(axis=1)
            found[path_name(path)] = np.flatnonzero(rows).tolist()
    return found


def of_one_persona(path: str) -> bool:
    """True for the weights that have a row a persona."""
    owned = (".heads.", ".lora.")
    return path.endswith((".core", "masks.u", "injection.embedding", "injection.up")) or any(x in path for x in owned)


def test_the_frozen_backbone_keeps_every_bit(trained: Path) -> None:
    base = ModelDirectory(trained / "base").load_params()
    bank, rest = cut(ModelDirectory(trained / "personas").load_params(), is_persona)
    assert equal(rest, base)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(bank["persona"]["heads"]["up"]))


def test_an_unfrozen_backbone_learns_with_its_personas(trained: Path, tmp_path: Path) -> None:
    train(personas(tmp_path / "run", trained / "personas", freeze_backbone=False), progress=False)
    moved = changed(trained / "personas", tmp_path / "run")
    assert "embedding" in moved and "layers.1.attention.q.kernel" in moved and "persona.heads.up" in moved


@pytest.mark.parametrize("freeze", [True, False])
def test_only_one_persona_moves_and_nothing_that_is_shared(freeze: bool, trained: Path, tmp_path: Path) -> None:
    run = personas(
        tmp_path / "run", trained / "personas", only=("aviva",), freeze_backbone=freeze, optimizer={"weight_decay": 0.1}
    )
    train(run, progress=False)
    moved = changed(trained / "personas", tmp_path / "run")
    assert set(map(tuple, moved.values())) == {(1,)}
    assert {"persona.heads.up", "persona.injection.embedding", "persona.masks.u"} < set(moved)
    assert [path for path in moved if not of_one_persona(path)] == []


def test_a_persona_is_added_and_trained_without_a_trace_on_the_others(trained: Path, tmp_path: Path) -> None:
    newcomer = tmp_path / "ada.yaml"
    newcomer.write_text("name: ada\nvoice: You are Ada.\n")
    records = Path("abi_jax/data/demo/aviva.jsonl")
    data = tmp_path / "chats.jsonl"
    data.write_text((Path(__file__).parents[2] / records).read_text().replace('"aviva"', '"ada"'))
    run = personas(
        tmp_path / "run",
        trained / "personas",
        personas=("abbey", str(newcomer)),
        only=("ada",),
        data={"train": (str(data),)},
    )
    train(run, progress=False)
    directory = ModelDirectory(tmp_path / "run")
    assert [p.name for p in directory.personas] == ["abbey", "aviva", "abi", "ada"]
    moved = changed(trained / "personas", tmp_path / "run")
    assert moved and set(map(tuple, moved.values())) == {(3,)}


def test_a_persona_of_the_bank_keeps_its_settings_unless_it_is_given_as_a_file(trained: Path, tmp_path: Path) -> None:
    edited = tmp_path / "abbey.yml"
    edited.write_text("name: abbey\nvoice: Changed.\n")
    with use(mesh_of(ONE)):
        for given, voice in (
            (str(edited), "Changed."),
            ("abbey", ModelDirectory(trained / "personas").personas[0].voice),
        ):
            run = personas(tmp_path / "run", trained / "personas", personas=(given,), mesh=ONE)
            found = prepare(run, mesh_of(ONE), AxisRules()).personas
            assert [p.name for p in found] == ["abbey", "aviva", "abi"]
            assert found[0].voice == voice


def test_one_more_persona_cannot_change_how_the_others_are_served(trained: Path, tmp_path: Path) -> None:
    run = personas(tmp_path / "run", trained / "personas", only=("aviva",), data={"response_only": False})
    with pytest.raises(InputError, match=r"data.response_only = False with only = \['aviva'\], .* with True"):
        train(run, progress=False)


@pytest.mark.slow
def test_a_run_goes_on_with_an_edited_voice_but_not_with_other_reading_rules(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "ada.yaml"
    data = tmp_path / "chats.jsonl"
    records = Path(__file__).parents[2] / "abi_jax/data/demo/aviva.jsonl"
    data.write_text(records.read_text().replace('"aviva"', '"ada"'))

    def run(text: str, steps: int) -> None:
        file.write_text(f"name: ada\n{text}\n")
        config = personas(tmp_path / "run", trained / "base", personas=(str(file),), data={"train": (str(data),)})
        train(replace(config, steps=steps), progress=False)

    run("voice: First.", 2)
    run("voice: Second.", 3)
    assert [p.voice for p in ModelDirectory(tmp_path / "run").personas] == ["Second."]
    with pytest.raises(InputError, match="the records, tokenizer or personas are not those"):
        run("reads: [input, response]", 4)


def test_a_bank_that_is_full_is_widened_and_its_rows_stay(trained: Path, tmp_path: Path) -> None:
    more = [tmp_path / f"p{i}.yaml" for i in range(2)]
    for file in more:
        file.write_text(f"name: {file.stem}\n")
    run = personas(tmp_path / "run", trained / "personas", personas=tuple(map(str, more)), mesh=ONE)
    with use(mesh_of(ONE)):
        wide = prepare(run, mesh_of(ONE), AxisRules())
    assert wide.model.persona is not None and wide.model.persona.capacity == 10
    old, _ = cut(ModelDirectory(trained / "personas").load_params(), is_persona)

    def rows(x: jax.Array, like: jax.Array) -> jax.Array:
        return x[: len(like)] if x.shape != like.shape else x

    assert equal(jax.tree.map(rows, wide.trained, old), old)


Names = Callable[..., list[str]]


@pytest.fixture
def names(trained: Path, tmp_path: Path) -> Names:
    """The personas of a run that asks for some and starts from a model that has others."""

    def of(init: str, mode: str, *asked: str) -> list[str]:
        run = replace(personas(tmp_path / "run", trained / init), personas=asked, mesh=ONE)
        run = replace(run, data=replace(run.data, mode=mode))  # type: ignore[arg-type]
        with use(mesh_of(ONE)):
            return [p.name for p in prepare(run, mesh_of(ONE), AxisRules()).personas]

    return of


def test_a_base_model_brings_no_personas_and_a_bank_keeps_its_own_first(names: Names) -> None:
    assert names("base", "persona", "aviva") == ["aviva"]
    assert names("personas", "persona", "legal", "abi") == ["abbey", "aviva", "abi", "legal"]
    assert names("personas", "backbone", "legal") == ["abbey", "aviva", "abi"]


def test_only_names_personas_of_the_run(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only names 'legal'; the run's personas are abbey, aviva, abi"):
        train(personas(tmp_path / "run", trained / "personas", only=("legal",)), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_the_model_has_no_rows_for_is_refused(trained: Path, tmp_path: Path) -> None:
    start = tmp_path / "small"
    source = ModelDirectory(trained / "base")
    ModelDirectory.create(start, replace(source.config, vocab_size=320), source.tokenizer)
    with pytest.raises(InputError, match="the tokenizer has 384 ids, the model's vocab_size is 320"):
        train(personas(tmp_path / "run", start), progress=False)


@pytest.mark.smoke
def test_reading_rules_are_padded_to_the_capacity() -> None:
    strict = Persona("strict", reads=("input", "response"), strict_reading=True)
    reads, bound = pad_rules((*load_personas(["abbey", "aviva"]), strict), CAPACITY)
    assert reads[0].all() and reads[3].all()
    assert not reads[1, Role.HISTORY] and reads[1, Role.MEMORY]
    assert reads[2].tolist() == [True, False, False, False, True, True]
    assert bound.tolist() == [False, False, True, False]


def test_rules_that_forbid_nothing_cost_nothing(trained: Path, tmp_path: Path) -> None:
    with use(mesh_of(ONE)):
        run = prepare(personas(tmp_path / "run", trained / "personas", mesh=ONE), mesh_of(ONE), AxisRules())
    assert run.objective(5).reads is not None
    assert replace(run, personas=load_personas(["abbey", "abi"])).objective(5).reads is None


def test_personas_are_written_in_the_order_of_their_axis(tmp_path: Path) -> None:
    found = load_personas(["legal", "abbey"])
    (tmp_path / "personas.yaml").write_text(dump_personas(found), encoding="utf-8")
    assert ModelDirectory(tmp_path).personas == found


def tree_of(params: Tree) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def test_what_a_persona_run_trains_is_what_the_bank_holds(trained: Path, tmp_path: Path) -> None:
    with use(mesh_of(ONE)):
        run = prepare(personas(tmp_path / "run", trained / "base", mesh=ONE), mesh_of(ONE), AxisRules())
    base = tree_of(ModelDirectory(trained / "base").load_params())
    assert tree_of(run.frozen) == base
    assert not set(tree_of(run.trained)) & set(base)

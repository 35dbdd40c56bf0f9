"""What a run leaves behind can prove what it was made from, and names what was damaged since."""

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import abi_jax
from abi_jax.config import dump_yaml
from abi_jax.errors import InputError
from abi_jax.lineage import GENESIS
from abi_jax.lineage_digest import Snapshot, content_root, digest_tree
from abi_jax.lineage_shares import Shares
from abi_jax.model.diff import Version, diff
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance, named
from abi_jax.model.verify import Finding, verify
from abi_jax.sharding import AxisRules, use
from abi_jax.train.checkpoint import Checkpoints
from abi_jax.train.loop import train
from abi_jax.train.setup import prepare
from abi_jax.train.trees import join
from tests.thorough import usual
from tests.train.tiny import MESHES, config, equal, interrupted, mesh_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Personas on the backbone of another run, four checkpoints of which two are kept. Not to be changed."""
    folder = tmp_path_factory.mktemp("lineage")
    train(config(out=folder / "base", steps=2, mesh=MESHES["fsdp"]), progress=False)
    model = {"init": folder / "base"}
    changes = {"steps": 8, "checkpoint_every": 2, "keep": 2, "mesh": MESHES["2x2x2"]}
    train(config("persona", out=folder / "run", model=model, **changes), progress=False)
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.mark.slow
def test_every_checkpoint_has_a_link_and_outlives_its_weights(run: Path) -> None:
    provenance = Provenance(run)
    links = provenance.chain.links()
    assert [link.step for link in links] == [2, 4, 6, 8]
    assert provenance.steps() == {6: 3, 8: 4} and provenance.unlinked() == []
    assert links[0].parents == (Provenance(run.parent / "base").chain.head,)
    assert all(not link.parents for link in links[1:])
    assert len({link.config for link in links}) == 1 and len({link.position for link in links}) == 4
    assert [provenance.record(number).step for number in (1, 2, 3, 4)] == [2, 4, 6, 8]


def test_a_record_says_what_the_weights_are(run: Path) -> None:
    record = Provenance(run).record(4)
    params = ModelDirectory.open(run).load_params(step=8)
    mine = digest_tree(named("params", params))
    assert {name: d for name, d in record.tensors.items() if name.startswith("params/")} == mine
    assert content_root(record.tensors) == Provenance(run).chain.links()[-1].content


def test_arrays_are_stored_as_they_are(run: Path) -> None:
    directory = ModelDirectory(run)
    step = directory.steps()[-1]
    names = directory.tensor_names(step)
    assert names
    assert {
        name for name in names if directory._stored(step, name).result().spec().to_json()["metadata"]["compressor"]
    } == set()


def test_the_same_state_has_the_same_content_on_any_mesh(run: Path) -> None:
    record, directory = Provenance(run).record(4), ModelDirectory.open(run)
    mine = {name: d for name, d in record.tensors.items() if name.startswith("params/")}
    for mesh in MESHES.values():
        assert digest_tree(named("params", directory.load_params(step=8, mesh=mesh_of(mesh)))) == mine


def test_what_is_whole_is_found_whole(run: Path) -> None:
    result = verify(run)
    assert result.findings == () and (result.links, result.steps) == (4, 2)
    assert result.tensors == 2 * len(Provenance(run).record(4).tensors) and result.files > 20


@pytest.mark.parametrize("first", usual([0, 50, 100, 150], [0]))
def test_200_flipped_bytes_are_all_found_and_named(copy: Path, run: Path, first: int) -> None:
    files = sorted(f for f in copy.rglob("*") if f.is_file() and f.name not in ("metrics.jsonl", "curves.png"))
    as_saved = {step: tensors_of(run, step) for step in ModelDirectory(run).steps()}
    with_tensors = 0
    for seed in range(first, first + 50):
        chosen = random.Random(seed)
        file = files[seed % len(files)] if seed < len(files) else chosen.choice(files)
        whole = file.read_bytes()
        if not whole:
            continue
        broken = bytearray(whole)
        broken[chosen.randrange(len(whole))] ^= chosen.randrange(1, 256)
        file.write_bytes(broken)
        name = file.relative_to(copy).as_posix()
        findings = [f for f in verify(copy, contents=False).findings if f.where == name]
        assert findings, f"{name} was changed, and nobody saw it"
        if name.startswith("checkpoints/") and (step := int(name.split("/")[1])):
            read = {t for finding in findings for t in finding.tensors}
            assert read == unreadable(copy, step, name.split("/")[2], as_saved[step]), name
            with_tensors += bool(read)
        file.write_bytes(whole)
    assert with_tensors >= 2
    assert verify(copy).findings == ()


def tensors_of(run: Path, step: int) -> dict[str, np.ndarray]:
    """All tensors of a step, by name."""
    record = Provenance(run).record(Provenance(run).steps()[step])
    return {name: ModelDirectory(run).read_tensor(step, name) for name in record.tensors}


def unreadable(copy: Path, step: int, item: str, as_saved: Mapping[str, np.ndarray]) -> set[str]:
    """The tensors of an item that no longer read as they were saved."""
    found = set()
    for name, saved in as_saved.items():
        if name.startswith(item + "/"):
            try:
                if not np.array_equal(ModelDirectory(copy).read_tensor(step, name), saved, equal_nan=True):
                    found.add(name)
            except ValueError:
                found.add(name)
    return found


def test_missing_extra_and_swapped_files_are_found(copy: Path) -> None:
    step = copy / "checkpoints" / "8"
    (step / "position" / "metadata").unlink()
    (step / "params" / "extra").write_text("x")
    shutil.rmtree(copy / "checkpoints" / "6" / "params")
    shutil.copytree(step / "params", copy / "checkpoints" / "6" / "params")
    found = {f.where: f.reason for f in verify(copy, contents=False).findings}
    assert found["checkpoints/8/position/metadata"] == "missing"
    assert found["checkpoints/8/params/extra"] == "not sealed"
    assert any(where.startswith("checkpoints/6/params/") for where in found)


def test_a_step_that_was_not_linked_yet_is_linked_when_the_run_goes_on(
    copy: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = copy / "lineage" / "chain.jsonl"
    lines = chain.read_text().splitlines(keepends=True)
    chain.write_text("".join(lines[:3]))
    (copy / "lineage" / "4.json").unlink()
    assert [f.where for f in verify(copy, contents=False).findings] == ["checkpoints/8"]
    began = config("persona", out=copy, steps=8, checkpoint_every=2, keep=2, mesh=MESHES["2x2x2"])
    train(began, progress=False)
    assert "step 8 was saved, but not linked" in capsys.readouterr().err
    assert Provenance(copy).record(4).tensors == Provenance(run).record(4).tensors
    assert verify(copy).findings == ()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_chain_that_is_not_of_these_checkpoints_stops_a_run(copy: Path, kept: int) -> None:
    chain = copy / "lineage" / "chain.jsonl"
    chain.write_text("".join(chain.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(InputError, match=r"holds steps 6, 8 that no link of .*chain.jsonl stands for"):
        train(config("persona", out=copy, steps=10), progress=False)
    assert ModelDirectory(copy).steps() == [6, 8]


def test_a_relative_path_and_an_odd_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "a#b%20c?d")
    monkeypatch.chdir(tmp_path)
    assert verify(Path("a#b%20c?d")).findings == ()
    train(config(out=Path("here"), steps=1, mesh=MESHES["data"]), progress=False)
    assert verify(Path("here")).findings == () and Provenance(Path("here")).steps() == {1: 1}


def test_a_broken_chain_stops_a_run(copy: Path) -> None:
    chain = copy / "lineage" / "chain.jsonl"
    chain.write_text(chain.read_text().replace('"step":4', '"step":5', 1))
    with pytest.raises(InputError, match="link 2"):
        train(config("persona", out=copy, steps=10), progress=False)
    with pytest.raises(InputError, match="see abi verify"):
        Version.open(str(copy))


def test_diff_names_what_changed_and_by_how_much(run: Path) -> None:
    base, personas = Version.open(str(run.parent / "base")), Version.open(str(run))
    changes, same = diff(base, personas)
    assert {c.kind for c in changes} == {"added"} and same == sum(n.startswith("params/") for n in base.record.tensors)
    changes, same = diff(Version.open(f"{run}@6"), personas)
    assert changes and all(c.name.startswith("params/persona.") and c.kind == "changed" for c in changes)
    a, b = (ModelDirectory(run).read_tensor(step, changes[0].name).astype(np.float64) for step in (6, 8))
    assert changes[0].largest == np.abs(b - a).max()
    assert changes[0].relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    with pytest.raises(InputError, match="its steps: 6, 8"):
        Version.open(f"{run}@7")


def test_diff_measures_in_slabs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Version.open(f"{run}@6"), Version.open(str(run))
    whole, _ = diff(*versions)
    monkeypatch.setattr("abi_jax.model.diff.SLAB", 7)
    for change, same in zip(diff(*versions)[0], whole, strict=True):
        assert (change.name, change.largest) == (same.name, same.largest)
        assert change.relative == pytest.approx(same.relative)


def test_going_back_names_the_link_it_went_back_to(tmp_path: Path) -> None:
    began = config(out=tmp_path / "run", steps=6, checkpoint_every=2, keep=3, mesh=MESHES["data"])
    train(began, progress=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    train(began, progress=False)
    links = Provenance(tmp_path / "run").chain.links()
    assert [link.step for link in links] == [2, 4, 6, 6]
    assert links[3].parents == (links[1].hash,) and links[3].content == links[2].content


def test_a_run_stopped_in_its_first_save_begins_again(tmp_path: Path) -> None:
    began = config(out=tmp_path / "run", steps=4, checkpoint_every=2, mesh=MESHES["data"])
    with interrupted(after=3):
        train(began, progress=False)
    (tmp_path / "run" / "lineage" / "chain.jsonl").unlink()
    train(replace(began, resume="auto"), progress=False)
    assert [link.step for link in Provenance(tmp_path / "run").chain.links()] == [2, 4]


def test_a_step_saved_again_is_not_linked_by_its_older_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes back from step 6 to step 4, saves 6 again, and is stopped before it is linked."""
    began = config(out=tmp_path / "run", steps=6, checkpoint_every=2, keep=3, mesh=MESHES["data"])
    train(began, progress=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Provenance, "add", stop)
        train(began, progress=False)
    provenance = Provenance(tmp_path / "run")
    assert ModelDirectory(tmp_path / "run").steps() == [2, 4, 6]
    assert provenance.steps() == {2: 1, 4: 2} and provenance.unlinked() == [6]
    assert verify(tmp_path / "run").findings == (Finding("checkpoints/6", "no link stands for it"),)
    train(replace(began, steps=8), progress=False)
    links = provenance.chain.links()
    assert [link.step for link in links] == [2, 4, 6, 6, 8]
    assert links[3].parents == (links[1].hash,) and links[3].config == links[2].config != links[4].config
    assert links[4].parents == () and verify(tmp_path / "run").findings == ()


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_parent_is_the_link_of_what_was_loaded(run: Path, copy: Path, tmp_path: Path) -> None:
    """The newest step of the model it starts from has no link: the one before it is what is loaded and named."""
    chain = copy / "lineage" / "chain.jsonl"
    chain.write_text("".join(chain.read_text().splitlines(keepends=True)[:3]))
    start = {"init": copy}
    with use(mesh := mesh_of(MESHES["data"])):
        run_of_it = prepare(config("persona", out=tmp_path / "next", model=start), mesh, AxisRules())
    assert run_of_it.parent == Provenance(copy).chain.head
    assert equal(join(run_of_it.trained, run_of_it.frozen), ModelDirectory(copy).load_params(step=6))


def test_frozen_weights_are_hashed_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    class Counted(Snapshot):
        def __init__(self, tensors: Mapping[str, Any]) -> None:
            hashed.append(len(tensors))
            super().__init__(tensors)

    monkeypatch.setattr("abi_jax.train.checkpoint.Snapshot", Counted)
    changes = {"steps": 6, "checkpoint_every": 2, "mesh": MESHES["data"]}
    train(config("persona", out=tmp_path / "run", model={"init": run.parent / "base"}, **changes), progress=False)
    tensors = Provenance(tmp_path / "run").record(3).tensors
    frozen = sum(not n.startswith(("optimizer/", "params/persona.")) for n in tensors)
    assert hashed == [len(tensors), len(tensors) - frozen, len(tensors) - frozen] and frozen > 10
    assert verify(tmp_path / "run").findings == ()


def test_edited_personas_are_those_of_the_next_link(copy: Path, tmp_path: Path) -> None:
    edited = tmp_path / "abbey.yaml"
    abbey = ModelDirectory(copy).personas[0]
    edited.write_text(dump_yaml(replace(abbey, voice="Another voice.")))
    personas = (str(edited), "aviva", "abi")
    with interrupted(after=1):
        train(config("persona", out=copy, steps=12, keep=9, personas=personas, mesh=MESHES["data"]), progress=False)
    assert verify(copy, contents=False).findings == ()
    train(config("persona", out=copy, steps=9, keep=9, personas=personas, mesh=MESHES["data"]), progress=False)
    assert verify(copy, contents=False).findings == () and ModelDirectory(copy).personas[0].voice == "Another voice."


def test_a_fresh_start_in_an_old_directory_is_no_continuation(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    train(config(out=copy, steps=4, checkpoint_every=2, mesh=MESHES["data"]), progress=False)
    links = Provenance(copy).chain.links()
    assert [link.step for link in links] == [2, 4, 6, 8, 2, 4]
    assert [link.parents for link in links[4:]] == [(GENESIS,), ()] and verify(copy).findings == ()


def test_an_older_step_is_dropped_only_when_the_newer_is_linked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = config("persona", out=copy, steps=9, keep=1, mesh=MESHES["data"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Provenance, "add", stop)
        train(going_on, progress=False)
    assert ModelDirectory(copy).steps() == [6, 8, 9]


def test_a_step_half_dropped_is_no_step(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ModelDirectory(copy)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        directory.drop_steps(1)
    assert directory.steps() == [8] and verify(copy).findings == ()
    directory.drop_steps(1)
    assert sorted(p.name for p in directory.checkpoints.iterdir()) == ["8"]


def test_verify_while_a_run_goes_on(copy: Path) -> None:
    """A step that is saved and not linked yet is no damage, until the run has ended without linking it."""
    chain = copy / "lineage" / "chain.jsonl"
    chain.write_text("".join(chain.read_text().splitlines(keepends=True)[:3]))
    (copy / "lineage" / "4.json").unlink()
    hold = "import sys, pathlib as p, abi_jax.files as f; m = f.mark(p.Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(copy / "lineage" / "writing")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        result = verify(copy, contents=False)
        assert result.findings == () and result.writing == (8,)
        other.kill()
    result = verify(copy, contents=False)
    assert [f.where for f in result.findings] == ["checkpoints/8"] and result.writing == ()


def test_what_is_dropped_and_linked_while_it_is_verified_is_no_damage(copy: Path, run: Path) -> None:
    """The run saves a step, drops one, and writes personas, while the tensors of the first are read."""
    shutil.copytree(copy, copy.parent / "later")
    going_on = config("persona", out=copy.parent / "later", steps=9, keep=1, mesh=MESHES["data"])
    train(going_on, progress=False)

    def meanwhile(names: Iterable[str], total: int) -> Iterable[str]:
        for i, name in enumerate(names):
            if i == 1 and not (copy / "checkpoints" / "9").exists():
                shutil.move(copy.parent / "later" / "checkpoints" / "9", copy / "checkpoints" / "9")
                for file in (copy.parent / "later" / "lineage").glob("*.json*"):
                    shutil.copy(file, copy / "lineage")
                (copy / "personas.yaml").write_text("edited\n")
                shutil.rmtree(copy / "checkpoints" / "6")
            yield name

    result = verify(copy, track=meanwhile)
    assert result.findings == () and result.steps == 2


def test_the_code_of_a_link_is_that_of_its_sources(run: Path) -> None:
    said = Provenance(run).chain.links()[-1].code
    assert re.fullmatch(
        rf"abi-jax {re.escape(abi_jax.__version__)}, sources [0-9a-f]{{16}}, jax {jax.__version__}", said
    )


def test_a_process_that_cannot_hash_says_so_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Snapshot):
        def leaves(self) -> dict[str, np.ndarray]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(OSError, match="No space left"):
        Checkpoints(tmp_path, 1, ())._link(5, Broken({}), "", {}, ())
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    Shares(tmp_path / "lineage" / "shares-5").put({})
    with pytest.raises(InputError, match=r"process 1 could not hand in its digests: .*No space left on device"):
        list(Shares(tmp_path / "lineage" / "shares-5").get())

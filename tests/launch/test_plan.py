"""The templates, where an installed package looks for them."""

import stat
import tomllib
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.launch import plan
from tests.conftest import ROOT


def test_the_wheel_carries_every_template() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    carried = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    templates = plan._environment().list_templates()
    needed = {"gke/jobset.yaml", "slurm/train.sbatch", "tpu-vm/train.sh"}
    assert needed <= set(templates)
    for name in needed:
        folder = name.split("/")[0]
        assert carried[f"launch/{folder}"] == f"abi_jax/_launch/{folder}"


def test_the_files_are_for_nobody_else_to_read(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("from before")
    (tmp_path / "old").chmod(0o644)
    plan.Plan({"old": "a", "new": "b"}, ()).write(tmp_path)
    assert {p.name: (p.read_text(), stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.iterdir()} == {
        "old": ("a", 0o600),
        "new": ("b", 0o600),
    }


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_any_text_is_the_same_in_yaml(text: str) -> None:
    quoted = plan._environment().filters["yaml"](text)
    assert yaml.safe_load(quoted) == text and "\n" not in quoted

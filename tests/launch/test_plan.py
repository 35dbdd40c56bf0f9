"""The templates, where an installed package looks for them."""

import tomllib

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

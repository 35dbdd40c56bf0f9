"""Launch files: what they say, and what they may not."""

from pathlib import Path
from typing import Any

import pytest

from abi_jax.config import dump_yaml, find_config, load
from abi_jax.errors import InputError
from abi_jax.launch.accelerators import ACCELERATORS
from abi_jax.launch.config import LaunchConfig, SlurmSection
from abi_jax.launch.job import make_job
from abi_jax.train.config import TrainConfig
from tests.launch.cases import CPU, job, launch_file

pytestmark = pytest.mark.smoke


def test_the_example_is_one_file_for_every_target() -> None:
    config = load(LaunchConfig, find_config("example", "launch"), env={})
    assert (config.nodes, config.devices, config.processes_per_node) == (4, 8, 1)
    assert load(LaunchConfig, find_config("example", "launch"), ["accelerator=v5e"], env={}).devices == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Tiny_1"}, "name = 'Tiny_1'; expected at most 40 small letters"),
        ({"name": "-x"}, "name = '-x'"),
        ({"name": "1x"}, "name = '1x'"),
        ({"name": "x\n"}, "name = "),
        ({"accelerator": "h101"}, "accelerator = 'h101'; expected one of a100-40"),
        ({"nodes": 0}, "nodes = 0; expected at least 1"),
        ({"max_restarts": -1}, "max_restarts = -1; expected at least 0"),
        ({"processes_per_node": 3}, "processes_per_node = 3 does not divide the 8 devices"),
        ({"accelerator": "v5e", "processes_per_node": 2}, "processes_per_node = 2 on TPU; expected 1"),
        ({"devices_per_node": 0}, "devices_per_node = 0"),
        ({"workdir": "/a b"}, "workdir = '/a b'; expected a path without spaces"),
        ({"command": "abi\nrm"}, "command = "),
        ({"env": {"A-B": "1"}}, "env has 'A-B'"),
        ({"env": {"ABI_PROCESS_ID": "1"}}, "env sets ABI_PROCESS_ID, which the launcher does itself"),
        (
            {"env": {"ABI_STEPS": "1"}},
            "env sets ABI_STEPS, a key of the training configuration; expected it in overrides",
        ),
        ({"slurm": {"partition": "a b"}}, "partition = 'a b'; expected a name without spaces"),
        ({"slurm": {"time_limit": "soon"}}, "time_limit = 'soon'; expected minutes, HH:MM:SS or D-HH:MM:SS"),
        ({"slurm": {"options": ["exclusive"]}}, "options has 'exclusive'"),
        ({"gke": {"namespace": "My.Space"}}, "namespace = 'My.Space'"),
        ({"gke": {"namespace": "my.space"}}, "namespace = 'my.space'"),
        ({"gke": {"volumes": [{"claim": "a..b", "path": "/data"}]}}, "claim = 'a..b'"),
        ({"gke": {"secrets": ["A_KEY"]}}, "secrets = 'A_KEY'"),
        ({"gke": {"volumes": [{"claim": "c", "path": "data"}]}}, "path = 'data'; expected an absolute path"),
        ({"tpu_vm": {"spot": True, "reserved": True}}, "spot and reserved are both true"),
        ({"local": {"processes": 0}}, "processes = 0; expected at least 1"),
        ({"node": 2}, "unknown key 'node' with the number 2; nearest valid key: 'nodes'"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(LaunchConfig, launch_file(tmp_path, **changes), env={})
    assert message in str(caught.value)


def test_the_training_configuration_travels_whole(tmp_path: Path) -> None:
    launch = load(LaunchConfig, launch_file(tmp_path, overrides=["steps=7"]), env={})
    made = make_job(launch, "slurm", env={"ABI_OPTIMIZER__LEARNING_RATE": "0.5", "ABI_STEPS": "5"})
    (tmp_path / "again.yaml").write_text(made.train_yaml)
    again = load(TrainConfig, tmp_path / "again.yaml", env={})
    assert again == made.train
    assert (again.steps, again.optimizer.learning_rate) == (7, 0.5)
    assert dump_yaml(again) == made.train_yaml


def test_names_that_kubernetes_takes(tmp_path: Path) -> None:
    gke = {"namespace": "2024-team", "secrets": ["keys.v1"], "volumes": [{"claim": "0.data-1.x", "path": "/data"}]}
    config = load(LaunchConfig, launch_file(tmp_path, gke=gke), env={}).gke
    assert (config.namespace, config.volumes[0].claim, config.secrets) == ("2024-team", "0.data-1.x", ("keys.v1",))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("1-12", 129600), ("1-12:30", 131400)),
        *(("2-00:00:01", 172801), ("0", None), ("0:00", None)),
    ],
)
def test_time_limits_are_read_as_slurm_does(text: str, seconds: int | None) -> None:
    assert SlurmSection(time_limit=text).time_limit_s == seconds


def test_a_bad_override_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown key 'step' with .*nearest valid key: 'steps'"):
        job(tmp_path, "slurm", overrides=["step=7"])


def test_this_machine_may_be_smaller(tmp_path: Path) -> None:
    whole = job(tmp_path, "local", nodes=2, processes_per_node=4)
    assert (whole.processes, whole.devices_per_process, whole.devices) == (8, 2, 16)
    small = job(tmp_path, "local", nodes=2, local={"processes": 2, "devices": 3})
    assert (small.processes, small.devices_per_process, small.devices) == (2, 3, 6)


def test_a_cluster_of_cpus_simulates_its_devices(tmp_path: Path) -> None:
    env = job(tmp_path, "slurm", **CPU).environment
    assert env["JAX_PLATFORMS"] == "cpu" and "device_count=4" in env["XLA_FLAGS"]
    assert "JAX_PLATFORMS" not in job(tmp_path, "slurm").environment


def test_several_processes_never_take_themselves_for_one(tmp_path: Path) -> None:
    assert job(tmp_path, "tpu-vm", accelerator="v4").environment["ABI_NUM_PROCESSES"] == "2"
    assert "ABI_NUM_PROCESSES" not in job(tmp_path, "tpu-vm", accelerator="v4", nodes=1).environment


@pytest.mark.parametrize(
    ("name", "chips", "topology"), [("v4", 16, "2x2x4"), ("v5p", 64, "4x4x4"), ("v5e", 16, "4x4"), ("v6e", 1, "1x1")]
)
def test_topologies(name: str, chips: int, topology: str) -> None:
    assert ACCELERATORS[name].topology(chips) == topology
    assert ACCELERATORS[name].topology(chips, f"1x{chips}") == f"1x{chips}"


@pytest.mark.parametrize("name", [name for name, a in ACCELERATORS.items() if a.kind == "tpu"])
def test_every_topology_has_as_many_chips_as_it_says(name: str) -> None:
    accelerator = ACCELERATORS[name]
    for chips, topology in accelerator.topologies.items():
        assert accelerator.topology(chips, topology) == topology
    with pytest.raises(InputError, match=r"a slice of 12 .* chips; expected"):
        accelerator.topology(12)
    for wrong in ("2x2", "4x", "axb", "0x16"):
        with pytest.raises(InputError, match=f"topology '{wrong}'; expected sides whose product"):
            accelerator.topology(16, wrong)

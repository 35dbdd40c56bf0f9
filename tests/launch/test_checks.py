"""What is found out before anything is submitted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.launch.checks import check, memory_per_device
from abi_jax.model.config import ModelConfig
from tests.launch.cases import job
from tests.train.tiny import MODEL

# 8 billion parameters, as configs/model/llama3-8b.yaml.
LARGE = {
    "vocab_size": 128256,
    "d_model": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "d_ff": 14336,
    "max_length": 8192,
    "tied_embeddings": False,
}
BILLION = {"model": {"config": ModelConfig(**LARGE)}}  # type: ignore[arg-type]


def found(folder: Path, target: Any = "slurm", train: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    report = check(job(folder, target, train, **changes))
    return [f"ok {line}" for line in report.checks] + [f"warning {line}" for line in report.warnings]


def having(lines: list[str], part: str) -> str:
    (line,) = [line for line in lines if part in line]
    return line


def test_a_job_that_fits(tmp_path: Path) -> None:
    lines = found(tmp_path, train={"out": Path("/shared/run")}, overrides=["mesh.fsdp=8"])
    assert [line.split(":")[0] for line in lines] == [
        *("ok training configuration", "ok mesh", "ok batch", "ok output", "ok memory")
    ]
    assert "2 nodes x 8 h100 in 2 processes = 16 devices: data=2 fsdp=8" in having(lines, "mesh")
    assert "64 rows of 64 tokens, 4 a device" in having(lines, "batch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": ["mesh.fsdp=5"]}, "2 nodes x 8 h100 in 2 processes: mesh .*leaves no whole number"),
        ({"overrides": ["mesh.data=4"]}, "asks for 4 devices, there are 16"),
        ({"overrides": ["data.batch_size=24"]}, "'batch' of size 24 does not divide by 16"),
        ({"overrides": ["data.batch_size=32", "accumulate=4"]}, "'batch' of size 8 does not divide by 16"),
        ({"nodes": 16, "overrides": ["mesh.tensor=128"]}, "of size 64 does not divide by 128"),
        ({"overrides": ["data.length=512"]}, "data.length = 512 is longer than the model's context of 256"),
        ({"overrides": ["out=gs://bucket/run"]}, "out = 'gs:/bucket/run': buckets are not read or written"),
        ({"overrides": ["data.train=s3://b/x.jsonl"]}, "data.train = 's3:/b/x.jsonl'"),
        ({"overrides": ["mesh.slices={data: 4}"]}, "asks for 4 slices; on GPUs a slice is a node: expected 2"),
        ({"env": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "most"}}, "env.XLA_PYTHON_CLIENT_MEM_FRACTION = 'most'"),
        ({"workdir": None}, "workdir = null; expected, for slurm, the absolute path"),
        ({"workdir": "shared"}, "workdir = 'shared'; expected, for slurm, the absolute path"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        found(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 3, "overrides": ["mesh.slices={data: 2}"]}, "3 nodes do not divide into 2 slices"),
        ({"nodes": 1, "devices_per_node": 2}, "devices_per_node = 2; a slice of one v5e host has 1, 4, 8"),
        ({"nodes": 2, "devices_per_node": 8}, "hosts of a larger v5e slice have 4"),
        ({"nodes": 2}, "8 v5e chips are one TPU VM; expected nodes: 1, devices_per_node: 8"),
        ({"nodes": 4, "overrides": ["mesh.slices={data: 2}"]}, "expected nodes: 2, devices_per_node: 8"),
    ],
)
def test_tpu_hosts_come_in_sizes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    batch = {"data": {"batch_size": 48}}
    with pytest.raises(InputError, match=message):
        found(tmp_path, "tpu-vm", batch, accelerator="v5e", **changes)


def test_paths_of_one_host_are_doubted(tmp_path: Path) -> None:
    lines = found(tmp_path, train={"out": Path("/tmp/run")})
    assert "/tmp/run looks like storage of one host" in having(lines, "warning")
    assert "relative: on the hosts it is /shared/abi/run" in having(found(tmp_path), "warning")


def test_slurm_looks_for_inputs_where_it_can_see_them(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"workdir": str(tmp_path), "overrides": [f"out={tmp_path}/run", "data.train=mine.jsonl"]}
    assert f"data.train: {tmp_path}/mine.jsonl does not exist" in having(found(tmp_path, **asked), "mine")
    (tmp_path / "mine.jsonl").touch()
    assert not any("mine" in line for line in found(tmp_path, **asked))


def test_inputs_are_looked_for_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("a-1.jsonl", "home/b.jsonl", "demo/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def doubts(*names: str) -> list[str]:
        train = f"data.train=[{', '.join(repr(n) for n in names)}]"
        return [
            line
            for line in found(tmp_path, workdir=str(tmp_path), overrides=[f"out={tmp_path}/run", train])
            if "data.train" in line
        ]

    assert doubts("a-*.jsonl", "~/b.jsonl", "demo/c.jsonl", "demo/abbey", "demo") == []
    assert len(doubts("x-*.jsonl", "~/x.jsonl", "demo/x.jsonl")) == 3


def test_a_pod_writes_to_a_mounted_claim(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out: /shared/abi/run is under none of gke.volumes; .*goes with the pod"):
        found(tmp_path, "gke")
    gke = {"volumes": [{"claim": "c", "path": "/shared"}]}
    lines = found(tmp_path, "gke", gke=gke, overrides=["data.train=/opt/mine.jsonl"])
    assert "data.train: /opt/mine.jsonl is under none of gke.volumes: it must be in the image" in having(lines, "opt")


def test_memory_is_weighed_against_the_device(tmp_path: Path) -> None:
    too_large = having(found(tmp_path, train=BILLION), "memory:")
    assert too_large.startswith("warning memory: at least 119.") and "of 59.2 GiB that JAX takes of 79" in too_large
    split = having(found(tmp_path, train=BILLION, overrides=["mesh.fsdp=16"]), "memory:")
    assert split.startswith("ok memory: at least 7.")
    asked = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    assert "of 75.0 GiB" in having(found(tmp_path, train=BILLION, env=asked), "memory:")
    assert "of 16.0 GiB: does not fit" in having(
        found(tmp_path, "tpu-vm", BILLION, accelerator="v5e", nodes=4, overrides=["mesh.fsdp=4"]), "memory:"
    )


def test_a_frozen_backbone_has_no_moments(tmp_path: Path) -> None:
    whole, frozen = (
        job(tmp_path, "slurm", overrides=[f"freeze_backbone={f}", "data.mode=persona"]) for f in ("false", "true")
    )
    model = replace(MODEL, d_ff=4096)
    assert memory_per_device(whole, model) > 3 * memory_per_device(frozen, model)


def test_a_model_directory_is_read_where_it_can_be_seen(tmp_path: Path, trained: Path) -> None:
    away = found(tmp_path, overrides=["model.init=base"])
    assert "model.init = 'base' is not here" in having(away, "model.init")
    seen = found(tmp_path, overrides=[f"model.init={trained / 'base'}", f"out={tmp_path}"])
    assert having(seen, "memory:").startswith("ok")
    with pytest.raises(InputError, match="model directory 'base' does not exist"):
        found(tmp_path, "local", local={"processes": 2, "devices": 4}, overrides=["model.init=base"])

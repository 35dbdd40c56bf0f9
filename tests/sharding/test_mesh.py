"""Meshes from configuration, on the 8 simulated devices and without any."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from abi_jax.config import load
from abi_jax.errors import InputError
from abi_jax.sharding import AXES, AxisRules, MeshConfig, abstract_mesh, constrain, describe, make_mesh, use
from abi_jax.sharding.mesh import _hybrid

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("config", "split"),
    [
        (MeshConfig(), {"data": 8}),
        (MeshConfig(data=1, fsdp=8), {"fsdp": 8}),
        (MeshConfig(data=1, fsdp=-1, tensor=2), {"fsdp": 4, "tensor": 2}),
        (MeshConfig(data=2, fsdp=2, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
        (MeshConfig(data=2, sequence=4), {"data": 2, "sequence": 4}),
        (MeshConfig(data=2, sequence=2, tensor=-1), {"data": 2, "sequence": 2, "tensor": 2}),
    ],
)
def test_mesh_has_the_sizes_asked_for(config: MeshConfig, split: dict[str, int]) -> None:
    mesh = make_mesh(config)
    assert dict(mesh.shape) == {a: split.get(a, 1) for a in AXES}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert abstract_mesh(config, 8).shape == mesh.shape


def test_mesh_over_chosen_devices() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.size == 1
    assert describe(mesh) == "1 device"
    assert describe(make_mesh(MeshConfig(data=2, tensor=4))) == "8 devices: data=2 tensor=4"


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (MeshConfig(data=3), ["(data=3)", "asks for 3 devices", "there are 8"]),
        (MeshConfig(data=4, tensor=4), ["16 devices", "there are 8", "-1"]),
        (MeshConfig(tensor=3), ["(data=-1, tensor=3)", "8 devices", "take 3", "data=-1"]),
        (MeshConfig(data=1, tensor=16, fsdp=-1), ["take 16", "fsdp=-1"]),
        (MeshConfig(slices={"data": 3}), ["data=8", "3 slices"]),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_was_asked(config: MeshConfig, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        make_mesh(config)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": -1, "fsdp": -1}, "data, fsdp are all -1"),
        ({"tensor": 0}, "'tensor' is 0"),
        ({"expert": 2}, "'expert' is 2; expected 1"),
        ({"data": 1, "stage": -1}, "'stage' is -1; expected 1"),
        ({"tensor": -2}, "'tensor' is -2"),
        ({"slices": {"rows": 2}}, "'rows'.*known: data"),
        ({"slices": {"data": 0}}, r"\['data'\] is 0"),
    ],
)
def test_impossible_configurations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeshConfig(**values)


def test_mesh_from_configuration_text(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Config:
        mesh: MeshConfig = MeshConfig()

    overrides = ["mesh.data=4", "mesh.tensor=2", "mesh.slices.data=2"]
    assert load(Config, None, overrides, {}) == Config(MeshConfig(4, tensor=2, slices={"data": 2}))


def test_hybrid_mesh_keeps_a_slice_together() -> None:
    """With the data axis over two slices, the other axes stay within one."""
    mesh = make_mesh(MeshConfig(data=4, tensor=2, slices={"data": 2}))
    ids = np.vectorize(lambda d: d.id)(mesh.devices).reshape(4, 2)
    assert ids.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    mesh = make_mesh(MeshConfig(data=2, fsdp=4, slices={"fsdp": 2}))
    ids = np.vectorize(lambda d: d.id)(mesh.devices).reshape(2, 4)
    assert ids.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    assert float(jax.jit(jnp.sum)(x)) == 28


def fake_device(index: int, slice_index: int, process_index: int, platform: str = "gpu") -> Any:
    return SimpleNamespace(
        id=index, slice_index=slice_index, process_index=process_index, platform=platform, device_kind="H100"
    )


@pytest.mark.parametrize("by", ["slice", "process"])
def test_hybrid_mesh_on_real_slices(by: str) -> None:
    """Devices listed out of order still form whole slices, by slice or by process."""
    devices = [fake_device(i, i % 2 if by == "slice" else 0, i % 2) for i in range(8)]
    within, between = (1, 1, 2, 1, 1, 2), (2, 1, 1, 1, 1, 1)
    arranged = _hybrid(within, between, devices)
    assert arranged.shape == (2, 1, 2, 1, 1, 2)
    for number in range(2):
        assert {d.process_index for d in arranged[number].flat} == {number}


def test_hybrid_mesh_needs_as_many_slices_as_there_are() -> None:
    devices = [fake_device(i, i // 2, i // 2) for i in range(8)]
    with pytest.raises(InputError, match="2 slices; the 8 devices form 4 slices on 4 processes"):
        _hybrid((4, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1, 1), devices)


def test_lowering_for_machines_that_are_elsewhere() -> None:
    """A program for 256 devices lowers on this one, and says what each device would hold."""
    mesh = abstract_mesh(MeshConfig(fsdp=16, tensor=4), 256)
    assert dict(mesh.shape)["data"] == 4
    rules = AxisRules()
    w = NamedSharding(mesh, rules.spec(("mlp", "embed"), mesh))
    assert w.shard_shape((1024, 512)) == (256, 32)
    x = NamedSharding(mesh, rules.spec(("batch", None), mesh))

    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return constrain(x @ w.T, ("batch", "mlp"))

    with use(mesh, rules):
        arguments = (
            jax.ShapeDtypeStruct((128, 512), jnp.bfloat16, sharding=x),
            jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16, sharding=w),
        )
        lowered = jax.jit(layer).trace(*arguments).lower(lowering_platforms=("tpu",))
    assert "num_partitions = 256" in lowered.as_text()
    assert "sharding_constraint" in lowered.as_text()

"""The table from logical axes to mesh axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from abi_jax.errors import InputError
from abi_jax.sharding import AXES, DEFAULT_TABLE, AxisRules, MeshConfig, abstract_mesh, check_divides, make_mesh

pytestmark = pytest.mark.smoke


def test_default_table_speaks_of_mesh_axes_only() -> None:
    assert {axis for axes in DEFAULT_TABLE.values() for axis in axes} <= set(AXES)


def test_spec_of_named_dimensions() -> None:
    rules = AxisRules()
    assert rules.spec(("batch", "length", None)) == PartitionSpec(("data", "fsdp"), "sequence", None)
    assert rules.spec(("mlp", "embed")) == PartitionSpec("tensor", "fsdp")
    assert rules.spec(("persona", "rank")) == PartitionSpec(None, None)
    assert rules.spec(()) == PartitionSpec()


def test_mesh_axes_that_are_absent_are_dropped() -> None:
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    assert AxisRules().spec(("batch", "mlp"), mesh) == PartitionSpec("data", None)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"'bach'.*no rule.*batch"):
        AxisRules().spec(("bach",))


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("batch", "embed"), ("mlp", "mlp")])
def test_two_dimensions_on_one_mesh_axis_are_refused(axes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="both map to mesh axis"):
        AxisRules().spec(axes)
    with pytest.raises(InputError, match="both map to mesh axis"):
        AxisRules().spec(axes, make_mesh())  # also where the axis has one device: a larger mesh must not surprise


def test_a_table_of_ones_own() -> None:
    rules = AxisRules({"batch": ("data",), "embed": ("fsdp", "tensor")})
    assert rules.spec(("batch", "embed")) == PartitionSpec("data", ("fsdp", "tensor"))
    with pytest.raises(InputError, match="'heads'"):
        rules.spec(("heads",))


def test_sharding_checks_that_the_mesh_divides() -> None:
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    rules = AxisRules()
    sharding = rules.sharding(("mlp", "embed"), mesh, (64, 32), "layers.0.mlp.up")
    assert sharding.shard_shape((64, 32)) == (16, 16)
    x = jax.device_put(jnp.zeros((64, 32)), sharding)
    assert {s.data.shape for s in x.addressable_shards} == {(16, 16)}
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up: dimension 'mlp' of size 66 .* by 4 .*tensor=4"):
        rules.sharding(("mlp", "embed"), mesh, (66, 32), "layers.0.mlp.up")


def test_check_divides_on_an_abstract_mesh() -> None:
    mesh = abstract_mesh(MeshConfig(fsdp=16, tensor=4), 256)
    spec = AxisRules().spec(("batch", "length"), mesh)
    check_divides((128, 7), ("batch", "length"), spec, mesh, "tokens")
    with pytest.raises(InputError, match="tokens: dimension 'batch' of size 100 does not divide by 64"):
        check_divides((100, 7), ("batch", "length"), spec, mesh, "tokens")

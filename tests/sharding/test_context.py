"""The current mesh and rules."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from abi_jax.errors import InputError
from abi_jax.sharding import AxisRules, MeshConfig, constrain, current_mesh, current_rules, make_mesh, use

pytestmark = pytest.mark.smoke


def shard_shapes(x: jax.Array) -> set[tuple[int, ...]]:
    return {s.data.shape for s in x.addressable_shards}


def test_without_a_mesh_nothing_happens() -> None:
    x = jnp.ones((4, 4))
    assert constrain(x, ("batch", "anything")) is x
    assert current_mesh() is None
    assert current_rules() == AxisRules()


def test_constrain_lays_out_inside_and_outside_jit() -> None:
    with use(make_mesh(MeshConfig(data=2, tensor=4))):
        assert shard_shapes(constrain(jnp.ones((8, 16)), ("batch", "mlp"))) == {(4, 4)}
        inside = jax.jit(lambda x: constrain(x * 2, ("batch", "mlp")))(jnp.ones((8, 16)))
    assert shard_shapes(inside) == {(4, 4)}
    assert current_mesh() is None


def test_gradients_pass_through() -> None:
    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(constrain(x**2, ("batch", "mlp")))

    x = jnp.arange(16.0).reshape(4, 4)
    with use(make_mesh(MeshConfig(data=2, tensor=4))):
        gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_array_equal(gradient, 2 * x)


def test_a_dimension_takes_the_mesh_axes_that_divide_it() -> None:
    with use(make_mesh(MeshConfig(data=4, fsdp=2))):
        for batch, shard in [(16, 2), (4, 1), (1, 1), (6, 6)]:
            assert shard_shapes(constrain(jnp.ones((batch, 3)), ("batch", None))) == {(shard, 3)}, batch


def test_changing_the_rules_or_the_mesh_traces_again() -> None:
    f = jax.jit(lambda x: constrain(x, ("batch", "mlp")))
    x = jnp.ones((8, 8))
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    with use(mesh):
        assert shard_shapes(f(x)) == {(4, 2)}
    with use(mesh, AxisRules({"batch": ("data",), "mlp": ()})):
        assert shard_shapes(f(x)) == {(4, 8)}
    with use(make_mesh(MeshConfig(data=8))):
        assert shard_shapes(f(x)) == {(1, 8)}
    assert shard_shapes(f(x)) == {(8, 8)}


def test_equal_rules_do_not_trace_again() -> None:
    traces = []

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        traces.append(1)
        return constrain(x, ("batch",))

    for _ in range(3):
        with use(make_mesh(), AxisRules()):
            f(jnp.ones(8))
    assert len(traces) == 1


def test_contexts_nest() -> None:
    with use(make_mesh(), AxisRules({"batch": ("data",)})):
        with use(make_mesh(MeshConfig(data=1, tensor=8)), AxisRules({"mlp": ("tensor",)})):
            assert dict(current_mesh().shape)["tensor"] == 8  # type: ignore[union-attr]
            assert current_rules() == AxisRules({"mlp": ("tensor",)})
        assert current_rules() == AxisRules({"batch": ("data",)})


def test_a_context_belongs_to_its_thread() -> None:
    seen: list[object] = []
    with use(make_mesh()):
        thread = threading.Thread(target=lambda: seen.append(current_mesh()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_axes_split_by_hand_are_left_alone() -> None:
    mesh = make_mesh(MeshConfig(data=2, tensor=4))

    def f(x: jax.Array) -> jax.Array:
        return constrain(x + 1, ("batch", "mlp"))

    with use(mesh):
        split = jax.shard_map(f, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), axis_names={"data"})
        out = jax.jit(split)(jnp.zeros((4, 8)))
        whole = jax.shard_map(f, in_specs=PartitionSpec("data", "tensor"), out_specs=PartitionSpec("data", "tensor"))
        np.testing.assert_array_equal(jax.jit(whole)(jnp.zeros((4, 8))), out)
    np.testing.assert_array_equal(out, np.ones((4, 8)))


def test_mistakes_are_named() -> None:
    with use(make_mesh()):
        with pytest.raises(InputError, match="'colour'"):
            constrain(jnp.ones(8), ("colour",))
        with pytest.raises(ValueError, match="1 dimensions"):
            constrain(jnp.ones((8, 8)), ("batch",))
        with pytest.raises(InputError, match="both map"):
            constrain(jnp.ones((8, 8)), ("mlp", "heads"))

"""Attaching a persona bank, leaving it out, and merging a mixture into the base weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.bank import BANK, add_personas, drop_personas, merge_persona
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf import export_hf, import_hf
from abi_jax.model.weight import Tree, count, describe, path_name
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.hf_cases import GOLDEN, NAMES, golden, imported, logits
from tests.thorough import usual

EACH = pytest.mark.parametrize("name", NAMES)
SHAPE = PersonaShape(capacity=3, core_mlp=True)
KEY = jax.random.key(7)
# a mixture, one persona, nobody
MIXTURES = np.array([[0.2, 0.5, 0.3], [0, 1, 0], [0, 0, 0], [0.5, 0.5, 0]], np.float32)


def trained(
    config: ModelConfig, params: Tree, shape: PersonaShape, zero: tuple[str, ...] = (), same: tuple[str, ...] = ()
) -> tuple[ModelConfig, Tree]:
    """A bank in which nothing is zero, except paths that hold one of `zero`; rows of `same` equal the first."""
    config, params = add_personas(config, params, shape, KEY)

    def change(path: tuple[object, ...], x: jax.Array) -> jax.Array:
        name = path_name(path)
        if any(part in name for part in zero):
            return jnp.zeros_like(x)
        x = x + 0.3 * jax.random.normal(jax.random.fold_in(KEY, len(name)), x.shape)
        return jnp.broadcast_to(x[:1], x.shape) if any(part in name for part in same) else x

    return config, params | {BANK: jax.tree_util.tree_map_with_path(change, params[BANK])}


SETTLED = [(jnp.float32, 0), (jnp.float32, 2), (jnp.bfloat16, 2)]


@pytest.mark.parametrize(
    ("name", "dtype", "settled"),
    usual(
        [(name, *each) for each in SETTLED for name in NAMES],
        [("llama3", jnp.float32, 0), ("gemma2", jnp.bfloat16, 2), *[(name, jnp.float32, 2) for name in NAMES]],
    ),
)
def test_a_new_bank_changes_no_bit_of_the_logits(name: str, dtype: jnp.dtype, settled: int) -> None:
    config, params = imported(name)
    tokens = np.concatenate([golden(name)["prompt"]] * 2)
    plain = logits(config, params, tokens, dtype=dtype)
    attached, bank = add_personas(config, params, SHAPE, KEY, settled=settled)
    assert np.array_equal(logits(attached, bank, tokens, MIXTURES, dtype=dtype), plain)


def test_settled_personas_have_cores_and_later_ones_none() -> None:
    _, params = add_personas(*imported("llama3"), SHAPE, KEY, settled=2)
    for group in params["persona"]["cores"].values():
        assert np.asarray(group["core"])[:2].all() and not np.asarray(group["core"])[2:].any()
        assert np.asarray(jax.tree.leaves(group["down"])[0]).all()
        assert not any(np.asarray(up).any() for up in jax.tree.leaves(group["up"]))


def test_base_arrays_are_passed_on_and_the_bank_is_what_the_model_describes() -> None:
    config, params = imported("qwen3")
    attached, bank = add_personas(config, params, SHAPE, KEY)
    _, weights = describe(lambda: Decoder(attached))
    assert attached.persona == SHAPE
    assert jax.tree.map(lambda w: w.shape, weights) == jax.tree.map(lambda x: x.shape, bank)
    assert sum(x.size for x in jax.tree.leaves(bank)) == count(weights)
    dropped, base = drop_personas(attached, bank)
    assert dropped == config
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, params)
    assert all(a is b for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(params), strict=True))
    with pytest.raises(InputError, match="has a bank of 3 personas already"):
        add_personas(attached, bank, SHAPE, KEY)


def test_a_bank_is_made_on_the_mesh_of_its_base_with_the_same_values() -> None:
    config, single = imported("llama3")
    _, spread = import_hf(GOLDEN / "llama3", mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), progress=False)
    _, a = add_personas(config, single, SHAPE, KEY, settled=2)
    _, b = add_personas(config, spread, SHAPE, KEY, settled=2)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert len(y.sharding.device_set) == 8
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=1e-7)


# --- merging -------------------------------------------------------------------------------------

FOLDABLE = PersonaShape(capacity=3, core_mlp=True, mask=False, gate=False, head_bias=False)


def check_merge(name: str, config: ModelConfig, params: Tree, w: np.ndarray) -> ModelConfig:
    merged = merge_persona(config, params, w)
    tokens = golden(name)["prompt"]
    assert merged.left_out == ()
    assert merged.config.persona is None
    whole = logits(config, params, tokens, np.stack([w] * len(tokens)))
    assert np.abs(whole - golden(name)["logits"]).max() > 0.1
    difference = np.abs(logits(merged.config, merged.params, tokens) - whole).max()
    assert difference < 1e-3 * max(1.0, np.abs(whole).max())
    return merged.config


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])
def test_one_persona_folds_whole_without_masks_and_gate(name: str) -> None:
    config, params = trained(*imported(name), FOLDABLE)
    merged = check_merge(name, config, params, np.array([0, 1, 0], np.float32))
    assert not merged.tied_embeddings


def test_a_mixture_folds_where_heads_do_not_route() -> None:
    w = np.array([0.25, 0.75, 0], np.float32)
    check_merge("mistral", *trained(*imported("mistral"), FOLDABLE, same=("heads.route",)), w)
    check_merge("gpt2", *trained(*imported("gpt2"), replace(FOLDABLE, gate=True), ("gate", "route")), w)
    assert check_merge("qwen3", *trained(*imported("qwen3"), replace(SHAPE, mask=False), ("heads", "injection")), w)


def test_cores_alone_keep_the_embeddings_tied() -> None:
    only_cores = replace(FOLDABLE, injection=False, head_rank=0)
    config, params = trained(*imported("qwen2"), only_cores)
    assert check_merge("qwen2", config, params, np.array([0.5, 0.5, 0], np.float32)).tied_embeddings


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_lora_folds_whole_for_every_mixture(name: str) -> None:
    only_lora = PersonaShape(capacity=3, mask=False, injection=False, head_rank=0, core_rank=0, lora_rank=2)
    check_merge(name, *trained(*imported(name), only_lora), np.array([0.25, 0.75, 0], np.float32))


def test_a_bias_over_the_vocabulary_is_named_and_nothing_else_is_lost() -> None:
    biased = replace(FOLDABLE, head_bias=True)
    merged = merge_persona(*trained(*imported("llama3"), biased), np.array([0, 1, 0], np.float32))
    assert merged.left_out == ("persona heads: their bias over the vocabulary, which the base model has no place for",)
    without = trained(*imported("llama3"), biased, zero=("heads.bias",))
    check_merge("llama3", *without, np.array([0, 1, 0], np.float32))


def test_what_cannot_be_folded_is_named() -> None:
    config, params = trained(*imported("llama2"), SHAPE)
    mixed = merge_persona(config, params, np.array([0.5, 0.5, 0], np.float32))
    assert [term.split(":")[0] for term in mixed.left_out] == [
        "attention masks of 3 of 3 layers",
        "token injection",
        "persona heads",  # their bias over the vocabulary
        "persona heads",  # their routes
    ]
    one = merge_persona(config, params, np.array([1, 0, 0], np.float32))
    assert len(one.left_out) == 3


def test_nobody_and_an_untrained_bank_merge_to_the_base() -> None:
    config, params = imported("llama2")
    attached = trained(config, params, SHAPE)
    nobody = merge_persona(*attached, np.zeros(3, np.float32))
    untrained = merge_persona(*add_personas(config, params, SHAPE, KEY), np.array([1, 0, 0], np.float32))
    for merged in (nobody, untrained):
        assert (merged.config, merged.left_out) == (config, ())
        assert all(map(np.array_equal, jax.tree.leaves(merged.params), jax.tree.leaves(params)))


def test_a_merged_model_exports(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("merged")
    config, params = trained(*imported("gemma2"), FOLDABLE)
    with pytest.raises(InputError, match=r"personas have no equivalent.*merge_persona"):
        export_hf(config, params, folder)
    merged = merge_persona(config, params, np.array([0, 0, 1], np.float32))
    export_hf(merged.config, merged.params, folder)
    again, back = import_hf(folder, progress=False)
    assert again == merged.config
    assert all(map(np.array_equal, jax.tree.leaves(merged.params), jax.tree.leaves(back)))


def test_a_sharded_merge_equals_the_merge_of_one_device_and_stays_sharded() -> None:
    w = np.array([0, 1, 0], np.float32)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, spread = import_hf(GOLDEN / "llama2", mesh=mesh, progress=False)
    config, params = trained(*imported("llama2"), FOLDABLE)
    placed = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), drop_personas(config, params)[1], spread)
    _, bank = add_personas(replace(config, persona=None), placed, FOLDABLE, KEY)
    put = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), params, bank)
    one, many = merge_persona(config, params, w), merge_persona(config, put, w)
    for a, b, c in zip(*(jax.tree.leaves(t) for t in (one.params, many.params, spread)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
        assert b.sharding == c.sharding


@pytest.mark.parametrize("w", [[0.5, 0.6, 0], [1, 0], [-0.5, 1.5, 0], [float("nan"), 0, 0]])
def test_a_mixture_off_the_simplex_is_refused(w: list[float]) -> None:
    config, params = add_personas(*imported("llama2"), SHAPE, KEY)
    with pytest.raises(InputError, match=r"mixture .* is not one for a bank of 3"):
        merge_persona(config, params, np.array(w, np.float32))


def test_a_base_model_has_nothing_to_merge() -> None:
    with pytest.raises(InputError, match="no personas to merge"):
        merge_persona(*imported("llama2"), np.zeros(3, np.float32))

"""LoRA as a row of the bank: an explicit change of every matrix."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.bank import BANK, add_personas
from abi_jax.model.config import PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.lora import LORA_TARGETS, LowRank, make_lora
from abi_jax.model.weight import count, describe
from tests.model.cases import CONFIGS, KEY, MIXED, base, conversations, logits, one_hot, spoken

ONLY = PersonaShape(capacity=4, mask=False, injection=False, head_rank=0, core_rank=0, lora_rank=3)


@pytest.mark.parametrize("T", [1, 40, 300])
def test_an_adapter_is_a_low_rank_change_of_its_matrix(T: int) -> None:
    a, b, c = jax.random.split(KEY, 3)
    adapter = LowRank(jax.random.normal(a, (4, 3, 10)), jax.random.normal(b, (4, 3, 7)), scale=0.5)
    x = jax.random.normal(c, (4, T, 10))
    w = np.broadcast_to(MIXED[:, None], (4, T, 4))
    dW = 0.5 * np.einsum("bp,pro,pri->boi", MIXED.astype(np.float64), adapter.up, adapter.down)
    np.testing.assert_allclose(adapter(x, jnp.asarray(w)), np.einsum("boi,bti->bto", dW, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_linear_layer_and_the_head_have_one(name: str) -> None:
    config = replace(CONFIGS[name], persona=ONLY)
    _, weights = describe(partial(Decoder, config))
    linear = [k for k in weights["layers"]["0"]["attention"] if k in "qkvo"] + list(weights["layers"]["0"]["mlp"])
    assert set(weights["persona"]["lora"]) == {*linear, "head"} == set(make_lora(config, ONLY))
    assert set(linear) <= set(sum(LORA_TARGETS.values(), ()))
    sizes = [weights["layers"]["0"]["attention" if n in "qkvo" else "mlp"][n]["kernel"].shape for n in linear]
    per_persona = config.num_layers * sum(a + b for a, b in sizes) + config.vocab_size + config.d_model
    assert count(weights["persona"]) == 4 * 3 * per_persona


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"persona.lora_rank = -1; expected 0 \(no such term\) or more"):
        PersonaShape(lora_rank=-1)
    with pytest.raises(InputError, match=r"persona.lora_alpha = 0; expected a number above 0"):
        PersonaShape(lora_rank=1, lora_alpha=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_initialisation_it_changes_no_bit(name: str, dtype: DTypeLike) -> None:
    plain = logits(*base(name), conversations(), dtype)
    added = logits(*add_personas(*base(name), ONLY, KEY), spoken(conversations(), MIXED), dtype)
    assert np.array_equal(plain, added)


def test_each_row_of_a_batch_speaks_with_its_own_adapter() -> None:
    config, params = add_personas(*base("llama"), ONLY, KEY)
    bank = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params[BANK])
    together = logits(config, params | {BANK: bank}, spoken(conversations(), one_hot(0, 1, 2, -1)))
    for persona in range(3):
        row = jax.tree.map(lambda x, p=persona: x[p : p + 1], bank)
        alone = replace(config, persona=replace(ONLY, capacity=1))
        single = logits(alone, params | {BANK: row}, spoken(conversations(), np.ones((4, 1), np.float32)))
        np.testing.assert_allclose(together[persona], single[persona], rtol=0, atol=1e-5 * np.abs(single).max())
    np.testing.assert_array_equal(together[3], logits(*base("llama"), conversations())[3])

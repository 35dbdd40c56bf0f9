"""The mathematics of personas: exactly the base model at first, and what each term says it is."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.typing import DTypeLike

from abi_jax.model.attention import reference
from abi_jax.model.attention_flash import fold
from abi_jax.model.attention_terms import Bias, Scoring, Sight
from abi_jax.model.attention_xla import xla
from abi_jax.model.bank import drop_personas
from abi_jax.model.blocks import Attention
from abi_jax.model.cache import new_cache
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs
from abi_jax.model.persona import (
    CORE_TARGETS,
    Injection,
    KeyFeatures,
    LayerTerms,
    MaskQueries,
    PersonaBank,
    PersonaHeads,
    mix_queries,
)
from abi_jax.model.rows import widen
from abi_jax.model.weight import Tree, Weight, describe, initialize, map_weights, merge
from abi_jax.text.roles import NUM_ROLES, Role
from tests.model.cases import (
    KEY,
    LLAMA,
    MIXED,
    NAMES,
    PERSONAS,
    SHAPE,
    base,
    busy,
    conversations,
    logits,
    mixtures,
    one_hot,
    program,
    readable_roles,
    responding,
    row,
    spoken,
    trained,
    untrained,
)

EACH = pytest.mark.parametrize("name", NAMES)
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
# nobody, two alone, a mixture
ROWS = conversations()
MASK_BOUND = SHAPE.mask_bound or 0.0


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# --- identity --------------------------------------------------------------------------------------


@EACH
@DTYPES
@settings(deadline=None, max_examples=20)
@given(w=mixtures)
def test_untrained_personas_are_the_base_model_to_the_last_bit(name: str, dtype: DTypeLike, w: np.ndarray) -> None:
    expected = logits(*base(name), ROWS, dtype)
    config, params = untrained(name)
    assert difference(logits(config, params, spoken(ROWS, w), dtype), expected) == 0
    assert difference(logits(config, params, spoken(ROWS, w, responding(ROWS)), dtype), expected) == 0


@EACH
@DTYPES
def test_rows_of_nobody_in_a_mixed_batch_are_the_base_model_to_the_last_bit(name: str, dtype: DTypeLike) -> None:
    expected = logits(*base(name), ROWS, dtype)
    config, params = trained(name)
    out = logits(config, params, spoken(ROWS, MIXED), dtype)
    assert difference(out[0], expected[0]) == 0
    assert all(difference(out[i], expected[i]) > 0.05 for i in (1, 2, 3))
    # positions before the response are nobody's, too
    active = responding(ROWS)
    out = logits(config, params, spoken(ROWS, MIXED, active), dtype)
    assert difference(out[~active], expected[~active]) == 0
    assert difference(out[1:][active[1:]], expected[1:][active[1:]]) > 0.05


@EACH
def test_leaving_the_mixture_out_is_the_base_model(name: str) -> None:
    assert difference(logits(*trained(name), ROWS), logits(*base(name), ROWS)) == 0


# --- one persona, several personas -----------------------------------------------------------------


def alone(config: ModelConfig, params: Tree, persona: int) -> tuple[ModelConfig, Tree]:
    """The model with one persona row, that of `persona`."""
    assert config.persona is not None
    single = replace(config, persona=replace(config.persona, capacity=1))
    _, weights = describe(partial(Decoder, config))

    def pick(weight: Weight, x: jax.Array) -> jax.Array:
        return x[persona : persona + 1] if weight.axes[0] == "persona" else x

    return single, jax.tree.map(pick, weights, params, is_leaf=lambda x: isinstance(x, Weight))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_one_hot_batch_is_each_persona_running_alone(name: str) -> None:
    config, params = trained(name)
    together = logits(config, params, spoken(ROWS, one_hot(0, 1, 2, 3)))
    for persona in range(PERSONAS):
        single = logits(*alone(config, params, persona), spoken(ROWS, np.ones((4, 1), np.float32)))
        assert difference(together[persona], single[persona]) < 1e-5
        assert all(difference(together[other], single[other]) > 0.05 for other in range(4) if other != persona)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@settings(deadline=None, max_examples=10)
@given(w=mixtures)
@example(w=np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0.001, 0.14, 0.601, 0.258], [0, 0, 0, 0]], np.float32))
def test_mixtures_in_one_batch_are_each_alone(name: str, w: np.ndarray) -> None:
    config, params = trained(name)
    whole = spoken(ROWS, w)
    together = logits(config, params, whole)
    size = max(1.0, np.abs(together).max())  # a search for the worst rounding: 1e-5 of logits that reach 4
    for i in range(4):
        assert difference(together[i], logits(config, params, row(whole, i))[0]) < 1e-5 * size


# --- response-only mode ------------------------------------------------------------------------------


def keys_and_values(config: ModelConfig, params: Tree, inputs: Inputs) -> list[np.ndarray]:
    """Every layer's keys and values `[B, K, T, d]`."""
    graphdef, _ = describe(partial(Decoder, config))

    @jax.jit
    def run(params: Tree) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        _, cache = merge(graphdef, params).hidden(
            inputs, new_cache(config, inputs.tokens.shape[0], inputs.tokens.shape[1]), fresh=True
        )
        return cache.keys, cache.values

    return [np.asarray(x) for part in run(params) for x in part]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prompt_has_the_base_models_keys_and_values_whoever_responds(name: str) -> None:
    active = responding(ROWS)
    prompt = int(np.argmax(active[0]))
    expected = keys_and_values(*base(name), ROWS)
    changed = keys_and_values(*trained(name), spoken(ROWS, MIXED, active))
    assert len(expected) == len(changed) == 4
    for a, b in zip(expected, changed, strict=True):
        assert np.array_equal(a[:, :, :prompt], b[:, :, :prompt])
        assert np.array_equal(a[0], b[0])
        assert difference(a[1:, :, prompt:], b[1:, :, prompt:]) > 0.01


# --- attention masks ---------------------------------------------------------------------------------


def built(build: Callable[[], nnx.Module], scale: float = 0.5) -> tuple[nnx.GraphDef, Tree]:
    """A module's structure and random weights, none of them zero."""
    graphdef, weights = describe(build)
    params = initialize(weights, KEY)
    noise = map_weights(lambda path, w: jax.random.normal(jax.random.fold_in(KEY, len(path)), w.shape), weights)
    return graphdef, jax.tree.map(lambda x, n: x + scale * n, params, noise)


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, M: jax.Array, scale: float) -> jax.Array:
    """`softmax(scale q k^T + M) v`, causal; q `[B, T, H, d]`, k and v `[B, H, T, d]`, M `[B, H, T, T]`."""
    scores = jnp.einsum("bthd,bhsd->bhts", q, k) * scale + M
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(causal, scores, -jnp.inf)
    return jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(scores, axis=-1), v)


def folded(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scoring: Scoring, bias: Bias) -> jax.Array:
    q, k = fold(q, k, sight, scoring.scale, bias)
    return reference(q, k, v, sight, Scoring(1.0))


@pytest.mark.parametrize(
    "backend",
    [reference, xla, partial(xla, smallest_block=4), folded],
    ids=["reference", "xla", "xla in blocks", "folded"],
)
def test_the_factored_mask_is_the_dense_mask_in_values_and_gradients(backend: Callable[..., jax.Array]) -> None:
    """`M_w = sum_p w_p M_p`, each `M_p[i, j] = u_p(role(i)) . v(j)` materialised."""
    config = replace(LLAMA, persona=SHAPE)
    ask, asked = built(lambda: MaskQueries(config, SHAPE), scale=6.0)
    see, seen = built(lambda: KeyFeatures(config, SHAPE))
    H, d, T = config.num_heads, config.head_dim, ROWS.tokens.shape[1]
    q, x = (jax.random.normal(jax.random.fold_in(KEY, i), (4, T, H, d)) for i in range(2))
    k, v = (jax.random.normal(jax.random.fold_in(KEY, i), (4, H, T, d)) for i in range(2, 4))
    arrays = {"q": q, "k": k, "v": v, "u": asked, "lexical": seen, "x": x.reshape(4, T, -1), "w": jnp.asarray(MIXED)}
    sight = Sight(ROWS.positions, ROWS.positions, ROWS.segments, ROWS.segments, aligned=True, packed=False)

    def features(a: dict[str, Any]) -> jax.Array:
        out: jax.Array = merge(see, a["lexical"])(a["x"], ROWS.roles, ROWS.positions)
        return out

    def factored(a: dict[str, Any]) -> jax.Array:
        w = jnp.broadcast_to(a["w"][:, None], (4, T, PERSONAS))
        terms = LayerTerms(merge(ask, a["u"]).values()[:, :, 1])
        bias = terms.bias(w, ROWS.roles, features(a))
        return backend(a["q"], a["k"], a["v"], sight, Scoring(0.3), bias)

    def dense(a: dict[str, Any]) -> jax.Array:
        u = MASK_BOUND * jnp.tanh(a["u"]["u"][:, :, 1] / MASK_BOUND)
        M = [jnp.einsum("bthf,bfs->bhts", u[p][ROWS.roles], features(a)) for p in range(PERSONAS)]
        M_w = sum(a["w"][:, p, None, None, None] * M[p] for p in range(PERSONAS))
        assert isinstance(M_w, jax.Array) and M_w.shape == (4, H, T, T)
        return dense_attention(a["q"], a["k"], a["v"], M_w, 0.3)

    def loss(f: Callable[[dict[str, Any]], jax.Array], a: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        out = f(a)
        return jnp.sum(out * x), out

    results = jax.jit(lambda a: [jax.grad(partial(loss, f), has_aux=True)(a) for f in (factored, dense)])(arrays)
    for a, b in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        assert difference(a, b) < 1e-4 * max(1.0, float(np.abs(b).max()))
        assert np.abs(b).max() > 1e-2


def test_mask_entries_are_bounded() -> None:
    ask, asked = built(lambda: MaskQueries(replace(LLAMA, persona=SHAPE), SHAPE), scale=1e4)
    w = jnp.broadcast_to(jnp.asarray(MIXED)[:, None], (4, 16, PERSONAS))
    u = mix_queries(merge(ask, asked).values(), w, ROWS.roles)
    assert np.abs(u).max() <= MASK_BOUND * (1 + 1e-6)
    assert np.abs(u[1:]).max() > 0.9 * MASK_BOUND


def test_key_features_are_role_position_and_a_lexical_part() -> None:
    see, seen = built(lambda: KeyFeatures(replace(LLAMA, persona=SHAPE), SHAPE))
    features = np.asarray(merge(see, seen)(jnp.ones((4, 16, LLAMA.d_model)), ROWS.roles, ROWS.positions))
    features = features.swapaxes(1, 2)
    assert np.array_equal(features[..., :NUM_ROLES], np.eye(NUM_ROLES)[np.asarray(ROWS.roles)])
    assert np.abs(features).max() <= 1
    assert (np.diff(features[0, :, NUM_ROLES]) < 0).all()  # decays with the position


# --- token injection -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [True, False])
def test_injection_blends_base_and_persona_embeddings(gate: bool) -> None:
    """`T = a T_base + (1 - a) T_persona`, token by token."""
    shape = replace(SHAPE, gate=gate)
    graphdef, params = built(lambda: Injection(LLAMA, shape))
    rng = np.random.default_rng(0)
    base_rows = rng.normal(size=(4, 3, LLAMA.d_model)).astype(np.float32)
    w = rng.dirichlet(np.ones(PERSONAS), (4, 3)).astype(np.float32)
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    expected = np.zeros_like(base_rows)
    for at in np.ndindex(4, 3):
        T_base = base_rows[at]
        D = sum(w[at][i] * (p["embedding"][i] + p["up"][i].T @ (p["down"] @ T_base)) for i in range(PERSONAS))
        T_persona = T_base + D
        score = p["gate"] @ np.concatenate([T_base, T_persona]) + p["gate_bias"][0] if gate else -np.inf
        a = 1 / (1 + np.exp(-score))
        expected[at] = a * T_base + (1 - a) * T_persona
    np.testing.assert_allclose(merge(graphdef, params)(jnp.asarray(base_rows), jnp.asarray(w)), expected, atol=1e-4)


def test_an_untrained_gate_receives_a_gradient_once_the_shift_moves() -> None:
    graphdef, weights = describe(lambda: Injection(LLAMA, SHAPE))
    params = initialize(weights, KEY) | {"embedding": jnp.full((PERSONAS, LLAMA.d_model), 0.1)}
    x, w = jnp.ones((1, 1, LLAMA.d_model)), jnp.full((1, 1, PERSONAS), 0.25)
    gradient = jax.grad(lambda p: jnp.sum(merge(graphdef, p)(x, w)))(params)
    assert all(np.abs(gradient[name]).max() > 0 for name in ("gate", "gate_bias", "embedding", "up"))


# --- persona heads -------------------------------------------------------------------------------------


def test_persona_heads_mix_low_rank_experts_token_by_token() -> None:
    graphdef, params = built(lambda: PersonaHeads(LLAMA, SHAPE))
    rng = np.random.default_rng(0)
    h = rng.normal(size=(4, 2, LLAMA.d_model)).astype(np.float32)
    w = np.broadcast_to(MIXED[:, None], (4, 2, PERSONAS))
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    expected = h.astype(np.float64)
    for at in np.ndindex(4, 2):
        pi = w[at] * np.exp(p["route"] @ h[at])
        pi = pi / max(pi.sum(), 1e-30)
        change = sum(pi[i] * (p["up"][i].T @ (p["down"][i] @ h[at])) for i in range(PERSONAS))
        expected[at] += change / np.sqrt(SHAPE.head_rank)
    np.testing.assert_allclose(merge(graphdef, params)(jnp.asarray(h), jnp.asarray(w)), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(w=mixtures, scale=st.sampled_from([1.0, 30.0, 1e3]))
def test_pi_is_on_the_simplex_of_those_who_speak(w: np.ndarray, scale: float) -> None:
    graphdef, params = built(lambda: PersonaHeads(LLAMA, SHAPE))
    h = scale * jax.random.normal(KEY, (4, 5, LLAMA.d_model))
    spread = jnp.broadcast_to(jnp.asarray(w)[:, None], (4, 5, PERSONAS))
    pi = np.asarray(jax.jit(lambda p: merge(graphdef, p).mixture(h, spread))(params))
    assert (pi >= 0).all() and np.isfinite(pi).all()
    assert (pi[np.asarray(spread) == 0] == 0).all()
    np.testing.assert_allclose(pi.sum(-1), np.asarray(spread).any(-1), atol=1e-5)


# --- core adapters -------------------------------------------------------------------------------------


BANK, BANKED = built(lambda: PersonaBank(LLAMA, SHAPE), scale=0.3)


def core_change(params: Tree, group: str, n: int, layer: int, w: np.ndarray) -> np.ndarray:
    """`dW_w = B (sum_p w_p C_p) A` of the group's projection `n`."""
    cores, r = params["cores"][group], SHAPE.core_rank
    up = np.asarray(cores["up"][CORE_TARGETS[group][n]][str(layer)], np.float64).T
    down = np.asarray(cores["down"][str(layer)], np.float64)[n * r : (n + 1) * r]
    core = np.asarray(cores["core"], np.float64)[:, layer, n]
    change: np.ndarray = up @ np.einsum("p,pij->ij", w, core) @ down
    return change


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("group", list(CORE_TARGETS))
def test_a_core_adapter_is_an_explicit_change_of_its_matrix(group: str, T: int) -> None:
    bank = merge(BANK, BANKED)
    w = jnp.broadcast_to(jnp.asarray(MIXED)[:, None], (4, T, PERSONAS))
    for layer, terms in enumerate(bank.layers(w, jnp.zeros((4, T), jnp.int32))):
        x = np.random.default_rng(layer).normal(size=(4, T, terms.cores[group].down.shape[1])).astype(np.float32)
        for n, out in enumerate(terms.cores[group](jnp.asarray(x), w)):
            dW = np.stack([core_change(BANKED, group, n, layer, row) for row in MIXED])
            np.testing.assert_allclose(out, np.einsum("boi,bti->bto", dW, x), rtol=1e-4, atol=1e-4)


def test_cores_of_q_k_v_and_o_change_exactly_those_matrices() -> None:
    """The attention layer with cores is the layer whose four matrices hold `W + dW`."""
    graphdef, params = built(partial(Attention, LLAMA, 0, "reference"), scale=0.3)
    x = jax.random.normal(KEY, (4, 16, LLAMA.d_model))
    sight = Sight(ROWS.positions, ROWS.positions, ROWS.segments, ROWS.segments, aligned=True, packed=False)

    def run(weights: Tree, inputs: Inputs, terms: LayerTerms) -> np.ndarray:
        return np.asarray(merge(graphdef, weights)(x, inputs, None, sight, terms, None)[0])

    changed = {
        name: {"kernel": params[name]["kernel"] + core_change(BANKED, group, n, 0, MIXED[3])}
        for group in ("qkv", "o")
        for n, name in enumerate(CORE_TARGETS[group])
    }
    spoke = spoken(ROWS, np.stack([MIXED[3]] * 4))
    assert spoke.mixture is not None
    terms = replace(merge(BANK, BANKED).layers(spoke.mixture, spoke.roles)[0], u=None)
    assert difference(run(params, spoke, terms), run(changed, ROWS, LayerTerms())) < 1e-4


# --- adding personas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@DTYPES
def test_writing_a_new_persona_leaves_the_others_to_the_last_bit(name: str, dtype: DTypeLike) -> None:
    config, params = trained(name)
    _, weights = describe(partial(Decoder, config))

    def write(weight: Weight, x: jax.Array) -> jax.Array:
        return x.at[2].add(1.0) if weight.axes[0] == "persona" else x

    after = jax.tree.map(write, weights, params, is_leaf=lambda x: isinstance(x, Weight))
    w = MIXED.copy()
    w[3] = [0.4, 0.6, 0, 0]  # all but persona 2
    before = logits(config, params, spoken(ROWS, w), dtype)
    assert difference(logits(config, after, spoken(ROWS, w), dtype), before) == 0
    assert difference(logits(config, after, spoken(ROWS, one_hot(2, 2, 2, 2)), dtype), before) > 0.05


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@DTYPES
def test_more_rows_leave_the_rows_and_what_they_say(name: str, dtype: DTypeLike) -> None:
    """The rows bit by bit; logits to rounding, for XLA sums 4 and 9 rows in another order on some processors."""
    config, params = trained(name)
    before = logits(config, params, spoken(ROWS, MIXED), dtype)
    wider, grown = widen(config, params, 9, jax.random.key(5))
    _, weights = describe(partial(Decoder, config))

    def kept(weight: Weight, was: jax.Array, now: jax.Array) -> bool:
        rows = [slice(PERSONAS if axis == "persona" else None) for axis in weight.axes]
        return np.array_equal(was, now[tuple(rows)])

    assert all(jax.tree.leaves(jax.tree.map(kept, weights, params, grown, is_leaf=lambda x: isinstance(x, Weight))))
    after = logits(wider, grown, spoken(ROWS, np.pad(MIXED, [(0, 0), (0, 5)])), dtype)
    assert difference(after, before) <= 4 * jnp.finfo(dtype).eps * np.abs(before).max()


# --- hard reading rules --------------------------------------------------------------------------------

# persona 1 reads no history, persona 2 no policy
READS = np.ones((PERSONAS, NUM_ROLES), bool)
READS[1, Role.HISTORY] = READS[2, Role.POLICY] = False
OPEN, STRICT = np.zeros(PERSONAS, bool), np.ones(PERSONAS, bool)


def ruled(w: np.ndarray, strict: np.ndarray) -> Callable[[Inputs], Inputs]:
    def apply(inputs: Inputs) -> Inputs:
        active = responding(inputs)
        return replace(spoken(inputs, w, active), readable=readable_roles(READS, strict, w, active))

    return apply


def rewritten(*roles: Role) -> Inputs:
    """The conversations with other text in `roles`."""
    other = (ROWS.tokens + 7) % 64
    return replace(ROWS, tokens=jnp.where(np.isin(ROWS.roles, roles), other, ROWS.tokens))


def test_rules_of_a_mixture_are_anded() -> None:
    active = np.array([[False, True]] * 4)
    w = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [1 - 1e-6, 1e-6, 0, 0]], np.float32)
    table = np.asarray(readable_roles(READS, OPEN, w, active))
    assert table[:, 0].all()  # nobody is bound before the response
    for at, roles in enumerate([[], [Role.HISTORY], [Role.HISTORY, Role.POLICY], [Role.HISTORY]]):
        assert np.flatnonzero(~table[at, 1]).tolist() == sorted(roles)
    strict = np.asarray(readable_roles(READS, np.array([False, True, False, False]), w, active))
    assert np.array_equal(strict[:, 1], table[:, 1])
    assert [np.flatnonzero(~row).tolist() for row in strict[:, 0]] == [
        [],
        [Role.HISTORY],
        [Role.HISTORY],
        [Role.HISTORY],
    ]


def test_a_response_never_attends_to_what_its_personas_may_not_read() -> None:
    """In a model of one layer all that reaches the response is what its own attention reads."""
    plain, params = base("llama")
    config, params = busy(replace(plain, num_layers=1), params | {"layers": {"0": params["layers"]["0"]}})
    w = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0.999, 0.001, 0, 0]], np.float32)
    apply, active = ruled(w, OPEN), responding(ROWS)
    before = logits(config, params, apply(ROWS))
    history = logits(config, params, apply(rewritten(Role.HISTORY)))
    policy = logits(config, params, apply(rewritten(Role.POLICY)))
    changed = [[difference(x[i][active[i]], before[i][active[i]]) > 0 for i in range(4)] for x in (history, policy)]
    assert changed == [[True, False, False, False], [True, True, False, True]]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_strict_rule_keeps_unread_text_out_of_every_layer(name: str) -> None:
    w = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0]], np.float32)
    changes = {}
    for strict in (False, True):
        apply = ruled(w, STRICT if strict else OPEN)
        before = logits(*trained(name), apply(ROWS))
        for role in (Role.HISTORY, Role.POLICY):
            after = logits(*trained(name), apply(rewritten(role)))
            read = np.asarray(ROWS.roles) >= Role.INPUT  # by all four
            changes[strict, role] = [difference(after[i][read[i]], before[i][read[i]]) > 0 for i in range(4)]
    assert changes[True, Role.HISTORY] == [True, False, False, True]
    assert changes[True, Role.POLICY] == [True, True, False, False]
    # without it, the question has read what the response may not
    assert changes[False, Role.HISTORY] == changes[False, Role.POLICY] == [True] * 4


# --- gradients -----------------------------------------------------------------------------------------


def test_gradients_of_a_mixed_batch_are_finite_and_stay_with_their_personas() -> None:
    config, params = trained("llama")
    _, weights = describe(partial(Decoder, config))
    w = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1]], np.float32)
    inputs = spoken(ROWS, w)

    def loss(params: Tree, inputs: Inputs) -> jax.Array:
        return jnp.mean(jax.nn.logsumexp(program(config)(params, inputs), axis=-1))

    gradient = jax.jit(jax.grad(loss))(params, inputs)
    for weight, g in zip(
        *(jax.tree.leaves(t, is_leaf=lambda x: isinstance(x, Weight)) for t in (weights, gradient)), strict=True
    ):
        assert np.isfinite(g).all() and np.abs(g).max() > 0
        if weight.axes[0] == "persona":
            used = np.abs(g).reshape(PERSONAS, -1).max(1) > 0
            assert used.tolist() == [False, True, False, True]


def test_the_base_model_is_what_is_left_without_the_bank() -> None:
    config, params = drop_personas(*trained("qwen3"))
    assert difference(logits(config, params, ROWS), logits(*base("qwen3"), ROWS)) == 0

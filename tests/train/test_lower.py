"""Steps of models too large for this machine, lowered for devices that are not there."""

from dataclasses import replace
from functools import partial

import jax
import pytest

from abi_jax.config import find_config, load
from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.costs import costs
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import count, describe
from abi_jax.sharding import MeshConfig
from abi_jax.train.lower import Platform, lower_step
from tests.thorough import usual
from tests.train.tiny import MESHES, MODEL

PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
POD = MeshConfig(data=1, fsdp=32, tensor=8)


LLAMA_8B, LLAMA_70B = ("llama3-8b", 8.03), ("llama3-70b", 70.55)


def published(name: str) -> ModelConfig:
    return replace(load(ModelConfig, find_config(name, "model"), env={}), persona=PersonaShape(capacity=3))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), usual([LLAMA_8B, LLAMA_70B], [LLAMA_8B]))
def test_large_models_lower_for_256_devices(name: str, billions: float) -> None:
    config, before = published(name), len(jax.live_arrays())
    step = lower_step(config, POD, 256, rows=32, length=4096)
    assert len(jax.live_arrays()) <= before
    assert count(describe(partial(Decoder, replace(config, persona=None)))[1]) / 1e9 == pytest.approx(
        billions, abs=0.01
    )
    text = step.lowered.as_text()
    assert '"fsdp"=32' in text and '"tensor"=8' in text
    # two moments beside each weight, and a step count: what `costs` reports without lowering
    weights = costs(config, POD)["weight_bytes_per_device_f32"]
    assert step.state_bytes == 3 * weights + 8
    assert step.state_bytes < 4 * 3 * 1.05 * billions * 1e9 / 256


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_a_small_model_lowers_for_every_mesh_and_platform(mesh: MeshConfig) -> None:
    for platform in PLATFORMS:
        step = lower_step(MODEL, mesh, 8, rows=8, length=64, platform=platform)
        assert step.batch_bytes == 7 * 4 * 64 * 8 // (8 // mesh.tensor)


def test_a_step_for_another_platform_has_none_of_the_forms_made_for_this_one() -> None:
    texts = {
        platform: lower_step(
            MODEL, MeshConfig(), 8, rows=8, length=64, platform=platform, remat="none"
        ).lowered.as_text()
        for platform in PLATFORMS
    }
    # one barrier is in every step: before the norm of the gradients
    assert {platform: text.count("optimization_barrier") > 1 for platform, text in texts.items()} == {
        "cpu": True,
        "cuda": False,
        "tpu": False,
    }


def test_a_mesh_that_does_not_divide_is_named() -> None:
    with pytest.raises(InputError, match=r"'heads' of size 32 does not divide by 256"):
        lower_step(published("llama3-8b"), MeshConfig(data=1, tensor=256), 256, rows=32, length=4096)

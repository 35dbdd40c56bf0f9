"""A model small enough to train in seconds, on any mesh of 8 devices, and a trained one that other tests share."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from abi_jax.data import Batch, DataConfig
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import Tree, describe, shardings
from abi_jax.sharding import AXES, AxisRules, MeshConfig, make_mesh, use
from abi_jax.train import loop
from abi_jax.train.config import ModelSection, OptimizerConfig, TrainConfig
from abi_jax.train.feed import feed, open_batches, pad_personas, place_batch
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.setup import Run, prepare
from abi_jax.train.step import initial_state, make_step
from abi_jax.train.trees import cut, is_persona, join

STEPS = 20
# Every axis of 8 divides it: heads, key-value heads, widths, vocabulary.
MODEL = ModelConfig(
    vocab_size=384,
    d_model=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=8,
    head_dim=8,
    d_ff=64,
    max_length=256,
)
CAPACITY = 4
# Every term that there is.
PERSONA = PersonaShape(capacity=CAPACITY, lora_rank=2)
ONE = MeshConfig(data=1)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=8),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
    "sequence": MeshConfig(data=2, sequence=4),
}


def config(mode: Any = "backbone", **changes: Any) -> TrainConfig:
    """A run of `STEPS` steps on the dialogues of the package; `data`, `model` and `optimizer` take dicts of changes."""
    data = {"mode": mode, "length": 64, "batch_size": 8, "prefetch": 0} | changes.pop("data", {})
    model = {"config": MODEL, "persona": PERSONA} | changes.pop("model", {})
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 5} | changes.pop("optimizer", {})
    return TrainConfig(
        data=DataConfig(**data),
        model=ModelSection(**model),
        optimizer=OptimizerConfig(**optimizer),
        **{"steps": STEPS, "log_every": 1, "checkpoint_every": 5} | changes,
    )


def mesh_of(mesh: MeshConfig) -> Mesh:
    """The mesh over as many of the 8 devices as it asks for."""
    return make_mesh(mesh, jax.devices()[: prod(getattr(mesh, a) for a in AXES)])


@cache
def prepared(mode: str) -> Run:
    """A run of fresh weights, on one device. Not to be changed."""
    mesh, rules = mesh_of(ONE), AxisRules()
    with use(mesh, rules):
        return prepare(config(mode), mesh, rules)


def placed(run: Run, mesh: Mesh) -> Run:
    """The same weights on another mesh."""
    _, weights = describe(partial(Decoder, run.model))
    copies = jax.tree.map(np.array, join(run.trained, run.frozen))  # a step consumes what it is given
    params = jax.device_put(copies, shardings(weights, mesh, run.rules))
    if run.frozen is None:
        return replace(run, mesh=mesh, trained=params)
    frozen, trained = cut(params, lambda path: is_persona(path) != run.persona_mode)
    return replace(run, mesh=mesh, trained=trained, frozen=frozen)


@cache
def batches(mode: str) -> tuple[Batch, ...]:
    """The batches of the run, whole and with the model's persona axis."""
    with open_batches(prepared(mode), "train") as source:
        return tuple(pad_personas(next(source), CAPACITY) for _ in range(STEPS))


@dataclass(frozen=True)
class Curve:
    """What `STEPS` steps gave: the loss of each, the gradient of the first, and the weights at the end."""

    losses: np.ndarray
    gradient: Tree
    params: Tree


def train_on(mesh: MeshConfig, mode: str) -> Curve:
    """Trains the run of `prepared` on a mesh."""
    run = placed(prepared(mode), mesh_of(mesh))
    optimizer = make_optimizer(run.config.optimizer, STEPS)
    losses, gradient = [], None
    with use(run.mesh, run.rules):
        state = initial_state(run.trained, optimizer)
        step = make_step(run.objective(len(run.personas) + 2), optimizer)
        for batch in batches(mode):
            state, metrics = step(state, run.frozen, place_batch(batch, run.mesh, run.rules, len(batch["tokens"])))
            losses.append(float(metrics["loss"]))
            if gradient is None:  # the first moment is then this share of the gradient
                moment = optax.tree_utils.tree_get(state.optimizer, "mu")
                gradient = jax.tree.map(lambda x: np.asarray(x) / (1 - run.config.optimizer.b1), moment)
    return Curve(np.array(losses), gradient, jax.device_get(join(state.params, run.frozen)))


@cache
def single(mode: str) -> Curve:
    """The same on one device: what every mesh is compared with."""
    return train_on(ONE, mode)


@contextmanager
def counting(after: int, then: Callable[[], None]) -> Iterator[None]:
    """Does something when `after` batches have been trained on, in the training inside."""
    count = 0

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == after + 1:
            then()
        return feed(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "feed", counted)
        yield


@contextmanager
def interrupted(after: int) -> Iterator[None]:
    """Stops the training inside with Ctrl-C when `after` batches have been trained on."""

    def stop() -> None:
        raise KeyboardInterrupt

    with counting(after, stop), pytest.raises(KeyboardInterrupt):
        yield


def signalled(after: int) -> AbstractContextManager[None]:
    """Sends SIGTERM to this process when `after` batches have been trained on."""
    return counting(after, lambda: signal.raise_signal(signal.SIGTERM))


def equal(a: Tree, b: Tree) -> bool:
    """True when two trees are bit-identical."""
    of_a, of_b = cast(Any, jax.tree.structure(a)), cast(Any, jax.tree.structure(b))
    return bool(of_a == of_b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two model directories, `base` and `personas`, trained a little. Not to be changed."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "trained"
    with (root / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one run share it
        if not (folder / "done").exists():
            common: dict[str, Any] = {"mesh": MESHES["data"], "steps": 40, "log_every": 10, "checkpoint_every": 40}
            loop.train(
                config("backbone", out=folder / "base", optimizer={"learning_rate": 1e-2}, **common), progress=False
            )
            start = {"init": folder / "base"}
            loop.train(
                config("persona", out=folder / "personas", model=start, optimizer={"learning_rate": 2e-2}, **common),
                progress=False,
            )
            (folder / "done").touch()
    return folder

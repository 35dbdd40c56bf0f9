"""A model directory: everything that is needed to run, continue or export a model.

runs/base/
  model.yaml        ModelConfig
  personas.yaml     the personas, in the order of the persona axis
  tokenizer/        the tokenizer's own files, unchanged
  checkpoints/N/    one Orbax step: `params`, and whatever a training run adds; under another name until it is whole
  lineage/          what every step was made from (see model/provenance.py)
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Mesh
from jax.typing import DTypeLike

from abi_jax.config import dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import Tree, abstract, describe
from abi_jax.persona import Persona, dump_personas, read_personas
from abi_jax.sharding.rules import AxisRules
from abi_jax.text.tokenizer import Tokenizer

# items of a step: weights, and as JSON where a run's data was, with the best step so far under `BEST`
PARAMS, POSITION, BEST = "params", "position", "best"


@dataclass(frozen=True)
class ModelDirectory:
    """The directory at `path`; nothing is read until it is asked for."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: ModelConfig, tokenizer: Tokenizer, personas: Sequence[Persona] = ()
    ) -> "ModelDirectory":
        """Writes everything but the weights. `model.yaml` comes last: without it there is no model directory."""
        path.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path / "tokenizer")
        made = cls(path)
        made.write_personas(personas)
        write_atomically(path / "model.yaml", dump_yaml(config))
        return made

    def write_personas(self, personas: Sequence[Persona]) -> None:
        """Writes the personas, in the order of the persona axis, over those that are there."""
        write_atomically(self.path / "personas.yaml", dump_personas(personas))

    @classmethod
    def open(cls, path: Path | str) -> "ModelDirectory":
        """Returns the directory. `InputError` when `path` is not one, saying what it is instead."""
        path = Path(path).expanduser()
        if (path / "model.yaml").is_file():
            return cls(path)
        if not path.exists():
            raise InputError(f"model directory {str(path)!r} does not exist")
        hint = f"; import it first: abi import {path} runs/base" if (path / "config.json").is_file() else ""
        raise InputError(f"{str(path)!r} is not a model directory: it has no model.yaml{hint}")

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return load(ModelConfig, self.path / "model.yaml", env={})

    @property
    def personas(self) -> tuple[Persona, ...]:
        """The personas, in the order of the persona axis."""
        return read_personas(self.path / "personas.yaml")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return Tokenizer.load(self.path / "tokenizer")

    @property
    def checkpoints(self) -> Path:
        """Where the steps are."""
        return (self.path / "checkpoints").absolute()

    def steps(self) -> list[int]:
        """All complete steps, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(self.checkpoints))

    def latest_step(self) -> int | None:
        """Newest complete step, or None."""
        return max(self.steps(), default=None)

    def selected_step(self) -> int | None:
        """The step to speak with: the one that the newest step names as the best, else the newest itself."""
        newest = self.latest_step()
        if newest is None or not (self.checkpoints / str(newest) / POSITION).is_dir():
            return newest
        best: int = self.read_json(newest, POSITION).get(BEST, {}).get("step", newest)
        return best if best in self.steps() else newest

    def drop_steps(self, keep: int, besides: int | None = None) -> None:
        """Removes all but the newest `keep` steps and `besides`.

        What is being removed is no step any more, whatever stops it.
        """
        dropped = self.checkpoints / "dropped"
        for step in [step for step in self.steps()[:-keep] if step != besides]:
            dropped.mkdir(exist_ok=True)
            (self.checkpoints / str(step)).rename(dropped / f"{step}-{time.time_ns()}")
        shutil.rmtree(dropped, ignore_errors=True)

    def save_params(self, step: int, params: Tree) -> None:
        """Writes the weights as step `step`, atomically, and waits for them."""
        with open_manager(self.checkpoints, (PARAMS,)) as manager:
            manager.save(step, args=ocp.args.Composite(**{PARAMS: ocp.args.PyTreeSave(params)}))

    def read_tensor(self, step: int, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Reads one array of a step as it is stored: `name` is its path, with dots, after its item and a slash.

        Raises `ValueError` where it cannot be read, or is stored with another shape.
        """
        array = self._stored(step, name).result()
        if shape is not None and tuple(array.shape) != tuple(shape):
            raise ValueError(f"{name} is stored with shape {array.shape}; expected {shape}")
        found: np.ndarray = array.read().result()
        return found

    def _stored(self, step: int, name: str) -> ts.Future[ts.TensorStore]:
        item, _, path = name.partition("/")
        base = {"driver": "file", "path": f"{self.checkpoints / str(step) / item}/"}
        stored = {"driver": "ocdbt", "base": base, "path": f"{path}/"}
        return ts.open({"driver": "zarr", "kvstore": stored}, open=True, read=True)

    def tensor_names(self, step: int) -> list[str]:
        """The arrays of a step, by the names that `read_tensor` takes."""
        found = []
        for about in sorted((self.checkpoints / str(step)).glob("*/_METADATA")):
            for entry in json.loads(about.read_text(encoding="utf-8"))["tree_metadata"].values():
                if entry["value_metadata"]["value_type"] == "jax.Array":
                    path = ".".join(str(key["key"]) for key in entry["key_metadata"])
                    found.append(f"{about.parent.name}/{path}")
        return found

    def read_json(self, step: int, item: str) -> Any:
        """Reads an item of a step that is JSON."""
        return json.loads((self.checkpoints / str(step) / item / "metadata").read_text(encoding="utf-8"))

    def load_params(
        self,
        *,
        step: int | None = None,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        rules: AxisRules | None = None,
    ) -> Tree:
        """Reads the weights of a step (by default `selected_step`) straight to their shards on `mesh`.

        Raises `InputError` where there is none, or it holds other weights than `model.yaml` describes.
        """
        steps = self.steps()
        step = self.selected_step() if step is None else step
        if step is None or step not in steps:
            wanted = "checkpoint" if step is None else f"step {step}"
            raise InputError(
                f"{str(self.checkpoints)!r} has no {wanted}; its steps: {', '.join(map(str, steps)) or 'none'}"
            )
        config = self.config
        _, weights = describe(lambda: Decoder(config))
        target = abstract(weights, dtype, mesh, rules)
        if mesh is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), target)
        misfit = self._misfit(step, target)  # before Orbax finds it, in a thread, with a traceback for every weight
        if misfit:
            raise InputError(f"{self.checkpoints / str(step)} is of another model than model.yaml: {misfit}")
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.checkpoints / str(step) / PARAMS, target)

    def _misfit(self, step: int, target: Tree) -> str | None:
        """The first weight of a step that is not as in `target`, if there is one."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(target)
        expected = {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}
        names = (name.partition("/") for name in self.tensor_names(step))
        opened = {path: self._stored(step, f"{PARAMS}/{path}") for item, _, path in names if item == PARAMS}
        stored = {path: tuple(array.result().shape) for path, array in opened.items()}
        for path in sorted(expected.keys() | stored.keys()):
            if expected.get(path) != stored.get(path):
                return f"it has {path} {stored.get(path, 'missing')}; expected {expected.get(path, 'none')}"
        return None


def check_new(path: Path) -> None:
    """Raises `InputError` when `path` exists or cannot be made."""
    if path.exists():
        raise InputError(f"{str(path)!r} exists already; choose another directory, or remove it")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raises `InputError` when no directory can be at `path`: something on the way is a file, or read-only."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"{str(path)!r} cannot be a directory: {str(there)!r} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{str(path)!r} cannot be written: {str(there)!r} is read-only")


def open_manager(
    checkpoints: Path, trees: Sequence[str], json_items: Sequence[str] = (), asynchronous: bool = False
) -> ocp.CheckpointManager:
    """Orbax's manager of steps, as every writer of model directories has it.

    trees, json_items: the items of a step that are trees of arrays, and those that are JSON.

    Arrays are stored as they are: compressed, weights take 8 % less room and five times the processor's time.
    """
    return ocp.CheckpointManager(
        checkpoints,
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=asynchronous, cleanup_tmp_directories=True),
        item_handlers={name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in trees}
        | {name: ocp.JsonCheckpointHandler() for name in json_items},
    )

"""What a run starts from: mesh, tokenizer, personas and weights, from a model directory or from nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from abi_jax.data import DataConfig, Splits, texts
from abi_jax.errors import InputError
from abi_jax.model.bank import add_personas
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.model.rows import row_mask, widen
from abi_jax.model.weight import Tree, describe, initialize
from abi_jax.persona import Persona, load_personas, reading_table, strict_table
from abi_jax.sharding.rules import AxisRules, check_divides
from abi_jax.text import Tokenizer, train_tokenizer
from abi_jax.train.config import TrainConfig
from abi_jax.train.objectives import BATCH_AXES
from abi_jax.train.step import Objective
from abi_jax.train.trees import cut, is_persona


@dataclass(frozen=True)
class Run:
    """A run ready to start: trained and frozen weights are on the mesh.

    parent: hash of the link of the weights that were read; empty where there is none.
    """

    config: TrainConfig
    model: ModelConfig
    mesh: Mesh
    rules: AxisRules
    tokenizer: Tokenizer
    personas: tuple[Persona, ...]
    splits: Splits
    graphdef: nnx.GraphDef
    trained: Tree
    frozen: Tree
    updates: Tree | None
    parent: str = ""

    @property
    def persona_mode(self) -> bool:
        """Whether the persona terms take part."""
        return self.config.data.mode == "persona"

    @property
    def capacity(self) -> int:
        """Width of the persona axis of a batch."""
        return self.model.persona.capacity if self.model.persona and self.persona_mode else len(self.personas)

    def objective(self, groups: int, attributes: int = 0) -> Objective:
        """What is trained, for batches whose `group` and `attribute` indices take so many values."""
        bias_weight = self.config.bias_weight if attributes else 0.0
        plain = Objective(self.graphdef, False, groups, bias_weight=bias_weight, attributes=attributes)
        if not self.persona_mode or self.model.persona is None:
            return plain
        reads, strict = pad_rules(self.personas, self.model.persona.capacity)
        return replace(plain, persona=True, reads=None if reads.all() else reads, strict=strict)

    def on(self, data: DataConfig) -> "Run":
        """The same run with other data."""
        return replace(self, config=replace(self.config, data=data), splits=Splits(data, self.personas))

    @property
    def flops_per_token(self) -> int:
        """Of a training step; a frozen backbone's own gradients are not computed."""
        forward = self.model.flops_per_token(self.config.data.length)
        return forward * (2 if self.persona_mode and self.config.freeze_backbone else 3)


def pad_rules(personas: Sequence[Persona], capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Reading rules bool `[capacity, R]` and strictness `[capacity]`; rows without a persona read everything."""
    reads = np.ones((capacity, reading_table(personas).shape[1]), bool)
    strict = np.zeros(capacity, bool)
    reads[: len(personas)], strict[: len(personas)] = reading_table(personas), strict_table(personas)
    return reads, strict


def prepare(config: TrainConfig, mesh: Mesh, rules: AxisRules) -> Run:
    """Reads or makes everything a run needs. Raises `InputError` before anything is written."""
    start = ModelDirectory.open(config.model.init) if config.model.init else None
    continued = config.model.init == config.out
    step, parent = Provenance(start.path).newest(selected=not continued) if start else (None, "")
    key = jax.random.key(config.seed)
    personas = load_personas(config.personas) if start is None else _personas(start, config)
    splits = Splits(config.data, personas)
    if start is None:
        tokenizer = train_tokenizer(texts(splits.side("train").records), config.model.config.vocab_size)
        model = replace(config.model.config, persona=None)
    else:
        tokenizer, model = start.tokenizer, start.config
    check_length(config, model)
    check_batch(config, mesh, rules)
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocab_size is {model.vocab_size}")

    if start is None:
        _, weights = describe(partial(Decoder, model))
        params = initialize(weights, key, mesh=mesh, rules=rules)
    else:
        params = start.load_params(step=step, mesh=mesh, rules=rules)
    if config.data.mode == "persona":
        model, params = _make_room(config, model, params, len(personas), key, mesh, rules)
        assert model.persona is not None
        if config.only and model.persona.response_only != config.data.response_only:
            raise InputError(
                f"data.response_only = {config.data.response_only} with only = {list(config.only)}, but the other "
                f"personas were trained with {model.persona.response_only}; expected the same"
            )
        model = replace(model, persona=replace(model.persona, response_only=config.data.response_only))

    graphdef, weights = describe(
        partial(
            Decoder,
            model,
            dtype=jnp.dtype(config.model.dtype),
            attention=config.model.attention,
            remat=config.model.remat,
        )
    )
    trained, frozen = params, None
    if config.data.mode == "persona" and config.freeze_backbone:
        trained, frozen = cut(params, is_persona)
    elif config.data.mode == "backbone":
        frozen, trained = cut(params, is_persona)
    updates = None
    if config.only:
        names = [p.name for p in personas]
        unknown = [n for n in config.only if n not in names]
        if unknown:
            raise InputError(f"only names {unknown[0]!r}; the run's personas are {', '.join(names)}")
        if config.data.mode == "backbone":
            raise InputError(f"only = {list(config.only)} trains personas; expected data.mode = persona, not backbone")
        updates = row_mask(weights, [names.index(n) for n in config.only])
        updates = cut(updates, is_persona)[0] if config.freeze_backbone else updates
    return Run(config, model, mesh, rules, tokenizer, personas, splits, graphdef, trained, frozen, updates, parent)


def _personas(start: ModelDirectory, config: TrainConfig) -> tuple[Persona, ...]:
    """The personas of a run that starts from a model: those of its bank, then the new ones.

    One that the bank has keeps its own settings, unless it is given as a file.
    """
    asked = load_personas(config.personas)
    has = start.personas if start.config.persona else ()
    if has and config.data.mode == "backbone":
        return has
    files = [Path(given).expanduser().is_file() for given in config.personas]
    edited = {p.name: p for p, is_file in zip(asked, files, strict=True) if is_file}
    known = {p.name for p in has}
    return (*(edited.get(p.name, p) for p in has), *(p for p in asked if p.name not in known))


def check_length(config: TrainConfig, model: ModelConfig) -> None:
    """Raises `InputError` where a row is longer than the model's context."""
    length = config.data.length
    if length > model.max_length:
        raise InputError(f"data.length = {length} is longer than the model's context of {model.max_length} tokens")


def check_batch(config: TrainConfig, mesh: Mesh | AbstractMesh, rules: AxisRules) -> None:
    """Raises `InputError` where the mesh does not divide a batch, or the parts it is accumulated in."""
    data, spec = config.data, rules.spec(BATCH_AXES, mesh)
    named = "data.batch_size" + (" / accumulate" if config.accumulate > 1 else "")
    check_divides((data.batch_size // config.accumulate, data.length), BATCH_AXES, spec, mesh, f"{named} x data.length")


def _make_room(
    config: TrainConfig, model: ModelConfig, params: Tree, count: int, key: jax.Array, mesh: Mesh, rules: AxisRules
) -> tuple[ModelConfig, Tree]:
    if model.persona is None:
        shape = config.model.persona
        capacity = max(shape.capacity, count)
        settled = 0 if config.only else count  # with `only`, what all share is not trained
        return add_personas(model, params, replace(shape, capacity=capacity), key, settled=settled, rules=rules)
    if model.persona.capacity < count:
        return widen(model, params, 2 * count, key, mesh, rules)
    return model, params

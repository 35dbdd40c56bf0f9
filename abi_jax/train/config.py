"""What a training run is: one configuration, from the model's shape to how often to save."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abi_jax.data.config import DataConfig
from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.sharding.mesh import MeshConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule: linear warm-up, then decay to `final_fraction` of the learning rate."""

    kind: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 3e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 20
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self) -> None:
        for name, hint in (("learning_rate", ""), ("clip_norm", ", inf for no clipping")):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} = {getattr(self, name)}; expected a number above 0{hint}")
        for name in ("warmup_steps", "weight_decay", "final_fraction"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} = {getattr(self, name)}; expected 0 or more")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; expected a number from 0 to below 1")


@dataclass(frozen=True)
class ModelSection:
    """Where the model comes from: a model directory (`init`), or fresh weights of the shape `config`.

    persona: the sizes of the persona terms, added when the model has none. dtype: of the activations; masters
    stay f32. remat: what the backward pass recomputes ("full": everything, "dots": all but matrix products).
    """

    init: Path | None = None
    config: ModelConfig = field(default_factory=ModelConfig)
    persona: PersonaShape = field(default_factory=PersonaShape)
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: str = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """A run. `data.mode` says what is trained: every weight of the backbone, or the persona terms.

    out: the model directory that is written. freeze_backbone: in persona mode, leave the base as it is.
    only: train the rows of these personas alone, so that every other one stays bit-identical.
    personas: names or files of the personas, in order; those the model has already come first, whatever the order.
    resume: "auto" continues what `out` holds, "never" refuses to touch it, "must" requires it.
    """

    out: Path = Path("runs/model")
    steps: int = 200
    personas: tuple[str, ...] = ("abbey", "aviva", "abi")
    freeze_backbone: bool = True
    only: tuple[str, ...] = ()
    seed: int = 0
    model: ModelSection = field(default_factory=ModelSection)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    resume: Literal["auto", "never", "must"] = "auto"
    checkpoint_every: int = 100
    keep: int = 3
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; expected at least 1")

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
class EvaluationConfig:
    """Evaluation on held-out data during a run, and what follows from it.

    every: steps between evaluations (0: none); an evaluated step is saved as well. batches: measure on so many at most
    (0: all held-out data). metric: what says which step is best: `loss`, `calibration_error`, or `loss/GROUP`.
    patience: stop after so many evaluations without an improvement of more than `min_delta` (0: never). matrix: measure
    every voice on every data set, too. select: a run speaks with its best step, not with its last.
    """

    every: int = 0
    batches: int = 0
    metric: str = "loss"
    patience: int = 0
    min_delta: float = 0.0
    matrix: bool = False
    select: bool = True

    def __post_init__(self) -> None:
        for name in ("every", "batches", "patience", "min_delta"):
            if not getattr(self, name) >= 0:
                raise InputError(f"evaluation.{name} = {getattr(self, name)}; expected 0 or more")
        for name in ("patience", "matrix"):
            if getattr(self, name) and not self.every:
                raise InputError(f"evaluation.{name} = {getattr(self, name)} without evaluation.every; expected both")


@dataclass(frozen=True)
class TrainConfig:
    """A run. `data.mode` says what is trained: every weight of the backbone, or the persona terms.

    out: the model directory that is written. freeze_backbone: in persona mode, leave the base as it is.
    only: train the rows of these personas alone, so that every other one stays bit-identical.
    personas: names or files of the personas, in order; those the model has already come first, whatever the order.
    accumulate: cut every batch into so many passes, for memory; the gradient is that of the whole batch.
    bias_weight: of `L_bias`, the variance of the mean losses of the groups that `data.bias_by` names.
    resume: "auto" continues what `out` holds, "never" refuses to touch it, "must" requires it.
    tensorboard: write metrics for TensorBoard, too. profile: trace a few steps into `out`/profile.
    """

    out: Path = Path("runs/model")
    steps: int = 200
    personas: tuple[str, ...] = ("abbey", "aviva", "abi")
    freeze_backbone: bool = True
    only: tuple[str, ...] = ()
    seed: int = 0
    accumulate: int = 1
    bias_weight: float = 0.0
    model: ModelSection = field(default_factory=ModelSection)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    resume: Literal["auto", "never", "must"] = "auto"
    checkpoint_every: int = 100
    keep: int = 3
    log_every: int = 10
    tensorboard: bool = False
    profile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; expected at least 1")
        if self.data.batch_size % self.accumulate:
            raise InputError(
                f"data.batch_size = {self.data.batch_size} does not divide into accumulate = {self.accumulate} parts; "
                "expected a multiple"
            )
        if self.evaluation.matrix and self.data.mode == "backbone":
            raise InputError(
                "evaluation.matrix = True with data.mode = backbone, where nobody speaks; expected persona"
            )
        if not self.bias_weight >= 0:
            raise InputError(f"bias_weight = {self.bias_weight}; expected 0 or more")
        if self.bias_weight and not self.data.bias_by:
            raise InputError(
                f"bias_weight = {self.bias_weight} without data.bias_by; expected the attribute it is about"
            )

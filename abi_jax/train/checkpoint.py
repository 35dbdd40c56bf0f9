"""Checkpoints of a run: weights, optimizer, data position and step, saved asynchronously, restored on any mesh."""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp

from abi_jax.model.directory import PARAMS, options
from abi_jax.train.step import TrainState
from abi_jax.train.trees import Tree, join

OPTIMIZER, POSITION = "optimizer", "position"


class Checkpoints:
    """The steps of one run, under `folder`, which is made when the first is saved. A step is listed only once whole."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._folder, options=options(self._keep, asynchronous=True))

    def latest(self) -> int | None:
        """Newest complete step, or None."""
        return self._manager.latest_step() if self._folder.is_dir() else None

    def save(self, state: TrainState, frozen: Tree, position: dict[str, Any]) -> None:
        """Starts saving; returns once the device arrays are copied."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(join(state.params, frozen)),
                    OPTIMIZER: ocp.args.StandardSave(state.optimizer),
                    POSITION: ocp.args.JsonSave(position),
                }
            ),
        )

    def position(self, step: int) -> dict[str, Any]:
        """Returns the data position of `step`."""
        return self._restore(step, POSITION, ocp.args.JsonRestore())

    def optimizer(self, step: int, like: Any) -> Any:
        """Returns the optimizer state of `step`; `like` is a tree of `jax.ShapeDtypeStruct`."""
        return self._restore(step, OPTIMIZER, ocp.args.StandardRestore(like))

    def _restore(self, step: int, item: str, how: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_manager" in self.__dict__:
            self._manager.wait_until_finished()
            self._manager.close()

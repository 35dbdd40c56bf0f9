"""Checkpoints of a run: weights, optimizer, data position and step, saved asynchronously, linked into its chain."""

import shutil
import threading
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from abi_jax.errors import InputError
from abi_jax.lineage_digest import Snapshot
from abi_jax.model.directory import PARAMS, ModelDirectory, options
from abi_jax.model.provenance import Provenance, named
from abi_jax.train.step import TrainState
from abi_jax.train.trees import Tree, join

OPTIMIZER, POSITION = "optimizer", "position"
POLL_SECONDS = 0.02


class Checkpoints:
    """The steps of the run in directory `out`. A step counts only once it is whole and its link stands in the chain.

    Saving waits for the copies from the devices alone: files, digests and the link follow in a thread.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self._directory, self._keep = ModelDirectory(out), keep
        self.provenance = Provenance(out)
        self._linking: threading.Thread | None = None
        self._error: BaseException | None = None

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._directory.checkpoints, options=options(self._keep, asynchronous=True))

    def latest(self) -> int | None:
        """Newest step that is whole and linked, or None."""
        return max(self.provenance.steps(), default=None)

    def save(
        self, state: TrainState, frozen: Tree, position: dict[str, Any], config: str, parents: tuple[str, ...] = ()
    ) -> None:
        """Starts saving; returns once the device arrays are copied. config: the run's, as text."""
        self.wait()
        step = int(state.step)
        params = join(state.params, frozen)
        taken = Snapshot(named(PARAMS, params) | named(OPTIMIZER, state.optimizer))
        if jax.process_index() == 0:
            self._shares(step).remove()  # of a run that was killed; no process has come past saving yet
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(params),
                    OPTIMIZER: ocp.args.StandardSave(state.optimizer),
                    POSITION: ocp.args.JsonSave(position),
                }
            ),
        )
        self._linking = threading.Thread(target=self._try_link, args=(step, taken, config, position, parents))
        self._linking.start()

    def wait(self) -> None:
        """Waits until what was saved last is whole and linked; raises what went wrong with it."""
        if self._linking is None:
            return
        self._manager.wait_until_finished()
        self._linking.join()
        self._linking = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def position(self, step: int) -> dict[str, Any]:
        """Returns the data position of `step`."""
        return self._restore(step, POSITION, ocp.args.JsonRestore())

    def optimizer(self, step: int, like: Any) -> Any:
        """Returns the optimizer state of `step`; `like` is a tree of `jax.ShapeDtypeStruct`."""
        return self._restore(step, OPTIMIZER, ocp.args.StandardRestore(like))

    def _restore(self, step: int, item: str, how: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]

    def _try_link(self, *args: Any) -> None:
        step = args[0]
        try:
            self._link(*args)
        except OSError as error:
            where = error.filename or self.provenance.path
            self._error = InputError(f"{where}: {error.strerror}; step {step} is saved, but its link is not")
        except BaseException as error:
            self._error = error

    def _link(self, step: int, taken: Snapshot, config: str, position: Any, parents: tuple[str, ...]) -> None:
        leaves = taken.leaves()
        shares = self._shares(step)
        if jax.process_count() > 1:
            shares.put(leaves)
            if jax.process_index() != 0:
                return
        while self._manager.is_saving_in_progress():
            time.sleep(POLL_SECONDS)
        try:
            if step in self._directory.steps():  # else it failed: the manager says why when it is waited for
                digests = taken.digests(shares.get() if jax.process_count() > 1 else [leaves])
                self.provenance.add(step, digests, config, position, parents)
        finally:
            shares.remove()

    def _shares(self, step: int) -> "_Shares":
        return _Shares(self.provenance.path / "lineage" / f"shares-{step}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_manager" in self.__dict__:
            self.wait()
            self._manager.wait_until_finished()
            self._manager.close()


class _Shares:
    """The leaves that each process hashed, as files in a folder that all of them see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, leaves: dict[str, np.ndarray]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{jax.process_index()}.partial.npz"
        np.savez(partial, allow_pickle=False, **leaves)
        partial.replace(self._folder / f"{jax.process_index()}.npz")

    def get(self) -> list[dict[str, np.ndarray]]:
        paths = [self._folder / f"{process}.npz" for process in range(jax.process_count())]
        while not all(path.is_file() for path in paths):
            time.sleep(POLL_SECONDS)
        return [dict(np.load(path)) for path in paths]

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

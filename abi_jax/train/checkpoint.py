"""Checkpoints of a run: weights, optimizer, data position and step, saved asynchronously, linked into its chain."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import orbax.checkpoint as ocp

from abi_jax.errors import InputError
from abi_jax.files import mark
from abi_jax.lineage_digest import Snapshot, TensorDigest
from abi_jax.lineage_shares import POLL_SECONDS, Shares
from abi_jax.model.directory import BEST, PARAMS, POSITION, ModelDirectory, open_manager
from abi_jax.model.provenance import ORIGIN, Provenance, named
from abi_jax.persona import Persona
from abi_jax.train.step import TrainState
from abi_jax.train.trees import Tree, join

OPTIMIZER = "optimizer"


class Checkpoints:
    """The steps of the run in directory `out`. A step counts only once it is whole and its link stands in the chain.

    Then all but the best and the newest `keep` are dropped. Saving waits for the copies from the devices alone: files,
    digests and the link follow in a thread. personas: the run's, written with the first link, for they may have been
    edited.
    """

    def __init__(self, out: Path, keep: int, personas: Sequence[Persona]) -> None:
        self._directory, self._keep, self._personas = ModelDirectory(out), keep, tuple(personas)
        self.provenance = Provenance(out)
        self._linking: threading.Thread | None = None
        self._error: BaseException | None = None
        self._mark: IO[str] | None = None
        self._frozen: Tree = None
        self._frozen_digests: dict[str, TensorDigest] = {}

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        return open_manager(self._directory.checkpoints, (PARAMS, OPTIMIZER), (POSITION, ORIGIN), asynchronous=True)

    def latest(self) -> int | None:
        """Newest step that is whole and linked, or None."""
        return max(self.provenance.steps(), default=None)

    def save(
        self, state: TrainState, frozen: Tree, position: dict[str, Any], config: str, parents: tuple[str, ...] = ()
    ) -> None:
        """Starts saving; returns once the device arrays are copied. config: the run's, as text.

        The weights of `frozen` are hashed when it is first seen.
        """
        self.wait()
        step = int(state.step)
        params = join(state.params, frozen)
        hashed = named(PARAMS, params if frozen is not self._frozen else state.params)
        taken = Snapshot(hashed | named(OPTIMIZER, state.optimizer))
        self._frozen = frozen
        if jax.process_index() == 0:
            self._shares(step).remove()  # of a run that was killed; no process has come past saving yet
            self._mark = self._mark or mark(self.provenance.writing)
        items = {
            PARAMS: ocp.args.PyTreeSave(params),
            OPTIMIZER: ocp.args.PyTreeSave(state.optimizer),
            POSITION: ocp.args.JsonSave(position),
            ORIGIN: ocp.args.JsonSave({"config": config, "parents": list(parents)}),
        }
        with self._saying(f"step {step} was not saved; the same command goes on from the one before it"):
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._linking = threading.Thread(target=self._try_link, args=(step, taken, config, position, parents))
        self._linking.start()

    def wait(self) -> None:
        """Waits until what was saved last is whole and linked; raises what went wrong with it.

        Raises `InputError` where a disk did not take it.
        """
        linking, self._linking = self._linking, None
        if linking is None:
            return
        try:
            with self._saying("the newest step was not saved; the same command goes on from the one before it"):
                self._manager.wait_until_finished()
        finally:
            linking.join()
            error, self._error = self._error, None
        if error is not None:
            raise error

    def position(self, step: int) -> dict[str, Any]:
        """Returns the data position of `step`."""
        return self._restore(step, POSITION, ocp.args.JsonRestore())

    def optimizer(self, step: int, like: Any) -> Any:
        """Returns the optimizer state of `step`; `like` is a tree of `jax.ShapeDtypeStruct`."""
        shards = ocp.checkpoint_utils.construct_restore_args(like)
        return self._restore(step, OPTIMIZER, ocp.args.PyTreeRestore(like, restore_args=shards))

    def _restore(self, step: int, item: str, how: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]

    def _try_link(self, *args: Any) -> None:
        try:
            with self._saying(f"step {args[0]} is saved, but not linked; the same command links it"):
                self._link(*args)
        except BaseException as error:
            self._error = error

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """Turns what a disk refused into an `InputError` that says why, and then what that means."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{error}; {what}") from None
        except OSError as error:
            raise InputError(f"{error.filename or self.provenance.path}: {error.strerror or error}; {what}") from error
        except ValueError as error:  # tensorstore's
            found = re.search(r"os_error_code='(\d+)'", str(error))
            if found is None:
                raise
            raise InputError(f"{self.provenance.path}: {os.strerror(int(found[1]))}; {what}") from error

    def _link(self, step: int, taken: Snapshot, config: str, position: Any, parents: tuple[str, ...]) -> None:
        shares, several = self._shares(step), jax.process_count() > 1
        try:
            leaves = taken.leaves()
            if several:
                shares.put(leaves)
        except BaseException as error:
            if several:
                shares.fail(str(error))
            raise
        if jax.process_index() != 0:
            return
        while self._manager.is_saving_in_progress():
            time.sleep(POLL_SECONDS)
        try:
            if step in self._directory.steps():  # else it failed: the manager says why when it is waited for
                digests = self._frozen_digests | taken.digests(shares.get() if several else [leaves])
                self._frozen_digests = {name: digests[name] for name in named(PARAMS, self._frozen)}
                self._directory.write_personas(self._personas)
                self.provenance.add(step, digests, config, position, parents)
                self._directory.drop_steps(self._keep, position.get(BEST, {}).get("step"))
        finally:
            shares.remove()

    def _shares(self, step: int) -> Shares:
        return Shares(self.provenance.path / "lineage" / f"shares-{step}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if "_manager" in self.__dict__:
                self.wait()
                self._manager.close()
        finally:
            if self._mark is not None:
                self._mark.close()

"""How a run begins: afresh, from another model, or where the one in its directory stopped."""

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from abi_jax.config import dump_yaml, load
from abi_jax.data import Batches
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.lineage import GENESIS
from abi_jax.model.directory import BEST, ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.train.checkpoint import Checkpoints
from abi_jax.train.config import TrainConfig
from abi_jax.train.finite import EVIDENCE
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.report import METRICS, read_metrics
from abi_jax.train.selection import Selection
from abi_jax.train.setup import Run
from abi_jax.train.step import TrainState, abstract_moments, initial_state

SETTINGS = "train.yaml"


def adapt(config: TrainConfig) -> TrainConfig:
    """A run that continues starts from its own directory, whatever it was first started from."""
    if (config.out / "model.yaml").is_file():
        if config.resume == "never":
            raise InputError(f"out = {str(config.out)!r} holds a run already; choose another, or resume=auto")
        if ModelDirectory(config.out).steps():
            _check_same_run(config)
            _link_unlinked(config)
            return replace(config, model=replace(config.model, init=config.out))
    if config.resume == "must":
        raise InputError(f"out = {str(config.out)!r} holds no run to resume")
    return config


def _link_unlinked(config: TrainConfig) -> None:
    """Links what was saved last where the run was killed between saving and linking it.

    Raises `InputError` where more than the newest step has no link: then the chain is not that of these checkpoints.
    """
    provenance, out = Provenance(config.out), str(config.out)
    if not provenance.chain.path.parent.is_dir():
        raise InputError(
            f"{out!r} holds checkpoints but no lineage; expected the whole directory of a run, or another out with "
            f"model.init = {out}"
        )
    unlinked, linked = provenance.unlinked(), provenance.steps()
    if len(unlinked) > 1 or any(step < max(linked, default=0) for step in unlinked):
        raise InputError(
            f"{out!r} holds steps {', '.join(map(str, unlinked))} that no link of {provenance.chain.path} stands for; "
            "expected the chain that was written with them; see abi verify"
        )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("unlinked steps are known")
    if unlinked and jax.process_index() == 0:
        print(f"{out}: step {unlinked[0]} was saved, but not linked; linking it", file=sys.stderr)
        provenance.adopt(unlinked[0])
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all steps are linked")


def parents_of(run: Run) -> tuple[str, ...]:
    """What the next link is made from, where that is not the link before it; zeros: from nothing that has a link."""
    head = Provenance(run.config.out).chain.head
    return () if (run.parent or GENESIS) == head else (run.parent or GENESIS,)


def _check_same_run(config: TrainConfig) -> None:
    """Raises `InputError` where what `config` trains is not what the run in its directory has a state of."""
    began = load(TrainConfig, config.out / SETTINGS, env={})
    fresh = not (config.model.init or began.model.init)
    shape = vars(config.model.config) if fresh else {}
    for name, now, then in (
        *((f"model.config.{name}", now, getattr(began.model.config, name)) for name, now in shape.items()),
        ("data.mode", config.data.mode, began.data.mode),
        ("freeze_backbone", config.freeze_backbone, began.freeze_backbone),
        ("optimizer.kind", config.optimizer.kind, began.optimizer.kind),
    ):
        if now != then:
            raise InputError(
                f"{name} = {now!r}, but out = {str(config.out)!r} holds a run with {then!r}; expected the same, "
                f"or another out with model.init = {config.out}"
            )


def begin(run: Run, batches: Batches, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
    """The state to train on and the frozen weights; sets `batches` where the newest checkpoint's were.

    Raises `InputError` where that position is of other data or settings.
    """
    optimizer = make_optimizer(run.config.optimizer, run.config.steps)
    latest = checkpoints.latest()
    if latest is None:
        return initial_state(run.trained, optimizer), run.frozen
    batches.set_state(checkpoints.position(latest))  # first: it says in words what does not fit this run
    moments, whole = abstract_moments(run.trained, optimizer)
    inner = checkpoints.optimizer(latest, moments)
    return TrainState(run.trained, inner, jax.device_put(np.int32(latest), whole)), run.frozen


def begin_selection(run: Run, data: str, checkpoints: Checkpoints, done: int) -> Selection:
    """What is known of the best step so far: what step `done`, if there is one, says of this metric and data."""
    before = checkpoints.position(done).get(BEST) if done else None
    selection = Selection(run.config.evaluation, data, before)
    if selection.restarted and run.config.evaluation.every and jax.process_index() == 0:
        print(
            f"{run.config.out}: the best step was chosen by another metric or on other data; it is chosen anew",
            file=sys.stderr,
        )
    return selection


def open_directory(run: Run, done: int) -> None:
    """Writes what describes a new run; makes one that continues forget what it reported after step `done`."""
    if jax.process_index() != 0:
        return
    if done == 0:
        ModelDirectory.create(run.config.out, run.model, run.tokenizer, run.personas)
        Provenance(run.config.out).chain.path.parent.mkdir(exist_ok=True)
        (run.config.out / SETTINGS).write_text(dump_yaml(run.config), encoding="utf-8")
    metrics = run.config.out / METRICS
    if metrics.is_file():
        kept = [record for record in read_metrics(metrics) if record["step"] <= done]
        write_atomically(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    (run.config.out / EVIDENCE).unlink(missing_ok=True)

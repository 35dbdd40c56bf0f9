"""The training loop: batches in, checkpoints and metrics out, continued where it stopped."""

import json
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from abi_jax.config import dump_yaml, load
from abi_jax.data import Batches
from abi_jax.errors import InputError, Preempted
from abi_jax.files import write_atomically
from abi_jax.lineage import GENESIS
from abi_jax.model.directory import BEST, ModelDirectory, check_writable
from abi_jax.model.provenance import Provenance
from abi_jax.sharding.context import use
from abi_jax.sharding.mesh import make_mesh
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.checkpoint import Checkpoints
from abi_jax.train.config import TrainConfig
from abi_jax.train.curves import FIGURE, draw_curves
from abi_jax.train.feed import gather_position, open_batches, pad_personas, place_batch
from abi_jax.train.finite import FiniteWatch
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.preemption import Preemption
from abi_jax.train.profile import Profile
from abi_jax.train.report import METRICS, Reporter
from abi_jax.train.selection import Selection, read_evaluations
from abi_jax.train.setup import Run, prepare
from abi_jax.train.step import TrainState, abstract_moments, initial_state, make_step
from abi_jax.train.validation import Validation

SETTINGS = "train.yaml"


def train(config: TrainConfig, progress: bool = True) -> dict[str, Any]:
    """Runs to `config.steps` and returns the last metrics. Continues what `config.out` holds, as `resume` says.

    Raises `Preempted` where SIGTERM stopped it, once all is saved.
    """
    check_writable(config.out)
    mesh, rules = make_mesh(config.mesh), AxisRules()
    with use(mesh, rules):
        run = prepare(_adapt(config), mesh, rules)
        with open_batches(run, "train") as batches, Checkpoints(config.out, config.keep, run.personas) as checkpoints:
            state, frozen = _begin(run, batches, checkpoints)
            return _loop(run, state, frozen, batches, checkpoints, progress, dump_yaml(config))


def _adapt(config: TrainConfig) -> TrainConfig:
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


def _parents(run: Run) -> tuple[str, ...]:
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


def _begin(run: Run, batches: Batches, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
    optimizer = make_optimizer(run.config.optimizer, run.config.steps)
    latest = checkpoints.latest()
    if latest is None:
        return initial_state(run.trained, optimizer), run.frozen
    batches.set_state(checkpoints.position(latest))  # first: it says in words what does not fit this run
    moments, whole = abstract_moments(run.trained, optimizer)
    inner = checkpoints.optimizer(latest, moments)
    return TrainState(run.trained, inner, jax.device_put(np.int32(latest), whole)), run.frozen


def _open_directory(run: Run, done: int) -> None:
    """Writes what describes a new run; makes one that continues forget what it reported after step `done`."""
    if jax.process_index() != 0:
        return
    if done == 0:
        ModelDirectory.create(run.config.out, run.model, run.tokenizer, run.personas)
        Provenance(run.config.out).chain.path.parent.mkdir(exist_ok=True)
        (run.config.out / SETTINGS).write_text(dump_yaml(run.config), encoding="utf-8")
    metrics = run.config.out / METRICS
    if metrics.is_file():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
        write_atomically(metrics, "".join(kept))


def _loop(
    run: Run,
    state: TrainState,
    frozen: Any,
    batches: Batches,
    checkpoints: Checkpoints,
    progress: bool,
    settings: str,
) -> dict[str, Any]:
    config, evaluation = run.config, run.config.evaluation
    capacity = run.model.persona.capacity if run.model.persona and run.persona_mode else len(run.personas)
    objective = run.objective(len(batches.groups), len(batches.attributes))
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(objective, optimizer, run.updates, config.accumulate)
    start = done = int(state.step)
    parents = _parents(run)
    last: dict[str, Any] = {}
    metrics_file = config.out / METRICS
    seen = [(at, found) for at, found in read_evaluations(metrics_file) if at <= done]
    selection = Selection(evaluation, seen)
    watch = FiniteWatch(config.out)
    with ExitStack() as open_now:
        report = open_now.enter_context(Reporter(run, batches.groups, batches.attributes, done, progress))
        validation = open_now.enter_context(Validation(run)) if evaluation.every and done < config.steps else None
        profile = open_now.enter_context(closing(Profile(config.out / "profile" if config.profile else None, done)))
        preemption = open_now.enter_context(Preemption())
        while done < config.steps and not selection.exhausted:
            profile.before(done)
            asked = time.perf_counter()
            batch = next(batches)
            report.waited(time.perf_counter() - asked)
            placed = place_batch(pad_personas(batch, capacity), run.mesh, run.rules, config.data.batch_size)
            state, metrics = step(state, frozen, placed)
            if done == start:  # it compiled: from here on there is something to keep
                _open_directory(run, done)
            done += 1
            profile.after(done, metrics)
            watch.add(done, metrics, batches.last_records)
            stop = preemption.reached(done) and done < config.steps
            evaluate = validation is not None and (done % evaluation.every == 0 or done == config.steps)
            save = stop or evaluate or done % config.checkpoint_every == 0 or done == config.steps
            if save or done % config.log_every == 0:
                watch.check(checkpoints.latest)
            if done % config.log_every == 0 or done == config.steps:
                last = report(done, metrics, batches.epoch)
            if validation is not None and evaluate:
                began = time.perf_counter()
                measured = validation(state.params, frozen)
                better = selection.add(done, measured)
                report.evaluation(done, measured, better, time.perf_counter() - began)
                last |= {"evaluation": measured}
            if save:
                best = selection.best if evaluation.select else None
                position = gather_position(batches) | ({BEST: asdict(best)} if best else {})
                checkpoints.save(state, frozen, position, settings, parents)
                parents = ()
            if stop:
                raise Preempted(done)
    if done > start and jax.process_index() == 0:
        draw_curves(metrics_file, config.out / FIGURE)
    return last | ({"best_step": selection.best.step} if selection.best else {})

"""The training loop: batches in, checkpoints and metrics out, continued where it stopped."""

import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import jax

from abi_jax.config import dump_yaml
from abi_jax.data import Batches
from abi_jax.errors import Preempted
from abi_jax.model.directory import BEST, check_writable
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
from abi_jax.train.resume import adapt, begin, open_directory, parents_of
from abi_jax.train.selection import Selection, read_evaluations
from abi_jax.train.setup import Run, prepare
from abi_jax.train.step import TrainState, make_step
from abi_jax.train.validation import Validation


def train(config: TrainConfig, progress: bool = True) -> dict[str, Any]:
    """Runs to `config.steps` and returns the last metrics. Continues what `config.out` holds, as `resume` says.

    Raises `Preempted` where SIGTERM stopped it, once all is saved.
    """
    check_writable(config.out)
    mesh, rules = make_mesh(config.mesh), AxisRules()
    with use(mesh, rules):
        run = prepare(adapt(config), mesh, rules)
        with open_batches(run, "train") as batches, Checkpoints(config.out, config.keep, run.personas) as checkpoints:
            state, frozen = begin(run, batches, checkpoints)
            return _loop(run, state, frozen, batches, checkpoints, progress, dump_yaml(config))


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
    parents = parents_of(run)
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
                open_directory(run, done)
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

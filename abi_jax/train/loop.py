"""The training loop: batches in, checkpoints and metrics out, continued where it stopped."""

import time
from contextlib import ExitStack, closing
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
from abi_jax.train.feed import feed, gather_position, open_batches
from abi_jax.train.finite import FiniteWatch
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.preemption import Preemption
from abi_jax.train.profile import Profile
from abi_jax.train.report import METRICS, Reporter, check_tensorboard
from abi_jax.train.resume import adapt, begin, begin_selection, open_directory, parents_of
from abi_jax.train.setup import Run, prepare
from abi_jax.train.step import TrainState, make_step
from abi_jax.train.validation import Validation


def train(config: TrainConfig, progress: bool = True) -> dict[str, Any]:
    """Runs to `config.steps` and returns the last metrics. Continues what `config.out` holds, as `resume` says.

    With `best_step` where it was evaluated, and `stopped_early`. Raises `Preempted` where SIGTERM stopped it, once all
    is saved.
    """
    check_writable(config.out)
    if config.tensorboard:
        check_tensorboard()
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
    config, every = run.config, run.config.evaluation.every
    objective = run.objective(len(batches.groups), len(batches.attributes))
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(objective, optimizer, run.updates, config.accumulate)
    start = done = int(state.step)
    parents = parents_of(run)
    last: dict[str, Any] = {}
    watch = FiniteWatch(config.out)
    with ExitStack() as opened:
        validation = opened.enter_context(Validation(run)) if every else None
        selection = begin_selection(run, validation.data if validation else "", checkpoints, done)
        report = opened.enter_context(Reporter(run, batches.groups, batches.attributes, done, progress))
        profile = opened.enter_context(closing(Profile(config.out / "profile" if config.profile else None, done)))
        preemption = opened.enter_context(Preemption())

        def evaluate() -> None:
            assert validation is not None
            began = time.perf_counter()
            measured = validation(state.params, frozen)
            better = selection.add(done, measured)
            report.evaluation(done, measured, better, time.perf_counter() - began)
            last["evaluation"] = measured

        if validation is not None and done < config.steps and not selection.exhausted:
            if 0 < done == done // every * every and selection.best.evaluated < done:
                open_directory(run, done)
                evaluate()  # it was stopped before it could
            else:
                validation.rehearse(state.params, frozen)
        ended = done >= config.steps or selection.exhausted
        metrics: dict[str, Any] = {}
        while not ended:
            profile.before(done)
            asked = time.perf_counter()
            batch = next(batches)
            if metrics and metrics["loss"].is_ready():
                report.waited(time.perf_counter() - asked)
            state, metrics = step(state, frozen, feed(run, batch))
            if done == start:  # it compiled: from here on there is something to keep
                open_directory(run, done)
            done += 1
            profile.after(done, metrics)
            watch.add(done, metrics, batches.last_records)
            stop = preemption.reached(done) and done < config.steps
            evaluated = every > 0 and not stop and (done % every == 0 or done == config.steps)
            save = stop or evaluated or done % config.checkpoint_every == 0 or done == config.steps
            if save or done % config.log_every == 0:
                watch.check(checkpoints.latest)
            if done % config.log_every == 0 or done == config.steps:
                last |= report(done, metrics, batches.epoch)
            if evaluated:
                evaluate()
            ended = done >= config.steps or selection.exhausted
            if ended and last.get("step") != done:
                last |= report(done, metrics, batches.epoch)
            if save:
                best = {BEST: selection.state()} if every and config.evaluation.select else {}
                checkpoints.save(state, frozen, gather_position(batches) | best, settings, parents)
                parents = ()
            if stop:
                raise Preempted(done)
    if done > start and jax.process_index() == 0:
        draw_curves(config.out / METRICS, config.out / FIGURE, selection.best.step)
    if selection.best.step is not None:
        last |= {"best_step": selection.best.step, "stopped_early": done < config.steps}
    return last

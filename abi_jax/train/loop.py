"""The training loop: batches in, checkpoints and metrics out, continued where it stopped."""

import json
import math
import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from abi_jax.config import dump_yaml, load
from abi_jax.data import Batches, Split, merge_states
from abi_jax.errors import InputError, Preempted
from abi_jax.files import write_atomically
from abi_jax.lineage import GENESIS
from abi_jax.model.directory import ModelDirectory, check_writable
from abi_jax.model.provenance import Provenance
from abi_jax.sharding.context import use
from abi_jax.sharding.mesh import make_mesh
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.checkpoint import Checkpoints
from abi_jax.train.config import TrainConfig
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.preemption import Preemption
from abi_jax.train.setup import Run, prepare
from abi_jax.train.step import TrainState, abstract_moments, batch_share, initial_state, make_step, place_batch

METRICS, SETTINGS = "metrics.jsonl", "train.yaml"


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


def open_batches(run: Run, split: Split, **changes: Any) -> Batches:
    """This process's share of the run's data; `changes` override fields of its `DataConfig`."""
    config = replace(run.config.data, **changes)
    share = batch_share(config.batch_size, run.mesh, run.rules)
    return Batches(config, run.tokenizer, run.personas, split, *share)


def pad_personas(batch: dict[str, np.ndarray], capacity: int) -> dict[str, np.ndarray]:
    """Widens the batch's mixture to the model's persona axis."""
    missing = capacity - batch["mixture"].shape[-1]
    return {**batch, "mixture": np.pad(batch["mixture"], [(0, 0), (0, 0), (0, missing)])} if missing else batch


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
    config = run.config
    capacity = run.model.persona.capacity if run.model.persona and run.persona_mode else len(run.personas)
    step = make_step(run.objective(len(batches.groups)), make_optimizer(config.optimizer, config.steps), run.updates)
    start = done = int(state.step)
    parents = _parents(run)
    last: dict[str, Any] = {}
    report = Reporter(config, batches.groups, done, progress)
    with report, Preemption() as preemption:
        while done < config.steps:
            batch = place_batch(pad_personas(next(batches), capacity), run.mesh, run.rules, config.data.batch_size)
            state, metrics = step(state, frozen, batch)
            if done == start:  # it compiled: from here on there is something to keep
                _open_directory(run, done)
            done += 1
            stop = preemption.reached(done) and done < config.steps
            save = stop or done % config.checkpoint_every == 0 or done == config.steps
            if save or done % config.log_every == 0:
                _check_finite(done, metrics, checkpoints)
            if done % config.log_every == 0 or done == config.steps:
                last = report(done, metrics, batches.epoch)
            if save:
                checkpoints.save(state, frozen, gather_position(batches), settings, parents)
                parents = ()
            if stop:
                raise Preempted(done)
    return last


def _check_finite(step: int, metrics: dict[str, jax.Array], checkpoints: Checkpoints) -> None:
    loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
    if not math.isfinite(loss + norm):
        saved = checkpoints.latest()
        kept = "nothing was saved" if saved is None else f"the last checkpoint is of step {saved}"
        raise InputError(
            f"step {step} has a loss of {loss} and a gradient norm of {norm}; {kept}: "
            "start again with a lower optimizer.learning_rate or optimizer.clip_norm"
        )


def gather_position(batches: Batches) -> dict[str, Any]:
    """The data position of all processes as one, for a checkpoint that any number of them can continue."""
    own = batches.get_state()
    if jax.process_count() == 1:
        return own
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size]))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return merge_states([json.loads(bytes(r[: int(n)])) for r, n in zip(rows, sizes.ravel(), strict=True)])


class Reporter:
    """Progress on standard error and in `metrics.jsonl` beside the checkpoints; process 0 speaks for all."""

    def __init__(self, config: TrainConfig, groups: tuple[str, ...], start: int, progress: bool) -> None:
        self.config, self.groups = config, groups
        self.speaks = jax.process_index() == 0
        shown, redrawn = progress and self.speaks, sys.stderr.isatty()
        self._lines = shown and not redrawn  # into a file or a pipe, which would hold every state of a bar
        self._bar = tqdm(
            total=config.steps,
            initial=start,
            unit="step",
            disable=not (shown and redrawn),
            desc=f"training {config.data.mode}",
            dynamic_ncols=True,
        )
        self._at, self._since = start, time.perf_counter()

    def __call__(self, step: int, metrics: dict[str, jax.Array], epoch: float) -> dict[str, Any]:
        """Waits for `metrics`, writes them, and returns them as plain numbers."""
        values = jax.device_get(metrics)
        now = time.perf_counter()
        tokens = (step - self._at) * self.config.data.batch_size * self.config.data.length
        speed = tokens / (now - self._since)
        counted = zip(self.groups, values["group_loss"], values["group_tokens"], strict=True)
        record = {
            "step": step,
            "loss": float(values["loss"]),
            "gradient_norm": float(values["gradient_norm"]),
            "tokens_per_second": speed,
            "epoch": epoch,
            "loss_by_group": {name: float(total / count) for name, total, count in counted if count},
        }
        said = f"loss {record['loss']:.3f}, {speed:,.0f} tokens/s"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._lines:
            left = timedelta(seconds=round((now - self._since) / (step - self._at) * (self.config.steps - step)))
            mode, steps = self.config.data.mode, self.config.steps
            print(f"training {mode}: step {step}/{steps}, {said}, {left} left", file=sys.stderr, flush=True)
        if self.speaks:
            with (self.config.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self._at, self._since = step, now
        return record

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

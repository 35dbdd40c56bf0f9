"""Another step of a model directory for a server that runs: checked against its link before it is loaded."""

from dataclasses import dataclass, replace

from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.lineage_seal import broken_seals
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.serve import roster
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.programs import Weights
from abi_jax.serve.served import Served
from abi_jax.serve.voices import Voices
from abi_jax.wdbx import Database


@dataclass(frozen=True)
class FreshStep:
    """See `http.service.Fresh`."""

    engine: PagedEngine
    weights: Weights
    voices: Voices
    lineage: Served

    def apply(self) -> None:
        """Speaks with it from now on."""
        self.engine.replace_weights(self.weights)


@dataclass(frozen=True)
class DirectoryReloader:
    """See `http.service.Reloader`."""

    directory: ModelDirectory
    engine: PagedEngine
    dtype: DTypeLike
    store: Database | None = None

    def load(self, step: int | None, voices: Voices) -> FreshStep:
        """Checks and loads a step, by default the one to speak with.

        Raises `InputError` for a step that is not there or not linked, for files that are not as they were sealed, and
        for a model of another shape or tokenizer: that needs another server.
        """
        step = check_step(self.directory, step)
        if self.directory.config != voices.config:
            raise InputError(f"step {step} is of another model configuration; expected the one that is served")
        if self.directory.tokenizer.digest != voices.tokenizer.digest:
            raise InputError(f"step {step} has another tokenizer; expected the one that is served")
        params = self.directory.load_params(step=step, dtype=self.dtype, mesh=self.engine.mesh)
        served = Served.of(self.directory, step, params, self.engine)
        voices = self._voices(voices)
        return FreshStep(self.engine, self.engine.prepared(params), voices, replace(served, store=self.store))

    def _voices(self, voices: Voices) -> Voices:
        """The directory's personas as they are now, with what was changed while they were served."""
        fresh = replace(voices, personas=Voices.of(self.directory).personas, given=None, blends={})
        had, has = voices.rows, fresh.rows
        if voices.config.persona is not None and has[: len(had)] != had:  # requests that wait were written for its rows
            raise InputError(f"its personas are {', '.join(has)}; expected {', '.join(had)}, and new ones after")
        return roster.apply(roster.changes(voices), fresh)


def check_step(directory: ModelDirectory, step: int | None) -> int:
    """The step, if its files are what its link stands for; without one, that to speak with. Raises `InputError`."""
    provenance = Provenance(directory.path)
    if step is None:
        step, _ = provenance.newest(selected=True)
    numbers = provenance.steps()
    if step is None or step not in numbers:
        there = ", ".join(map(str, sorted(numbers))) or "none"
        raise InputError(f"step {step} of {str(directory.path)!r} is not there, or has no link; there: {there}")
    record = provenance.record(numbers[step])
    broken = broken_seals(provenance.path, record.files, provenance.files(step))
    # what all steps share may have changed since an older one
    own = {name: why for name, why in broken.items() if step == max(numbers) or name.startswith(f"checkpoints/{step}/")}
    if own:
        name, why = next(iter(sorted(own.items())))
        raise InputError(f"step {step} of {str(directory.path)!r} is not what its link stands for: {name} is {why}")
    return step

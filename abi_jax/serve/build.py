"""From a configuration to a service that can be started."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.serve import roster
from abi_jax.serve.config import ServeConfig
from abi_jax.serve.embedder import SentenceEncoder
from abi_jax.serve.engine.led import Leader, agreed_step, follow, join, lead
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.http.auth import Gate, Tokens
from abi_jax.serve.http.keys import KeyRing
from abi_jax.serve.http.service import Service
from abi_jax.serve.reload import DirectoryReloader, check_step
from abi_jax.serve.served import Served
from abi_jax.serve.users import UserFolder
from abi_jax.serve.voices import Voices
from abi_jax.sharding.cluster import Cluster
from abi_jax.sharding.mesh import make_mesh
from abi_jax.wdbx import open as open_store
from abi_jax.wdbx.policy import read_policy

if TYPE_CHECKING:
    from abi_jax.serve.http.tracing import Traces


def make_engine(
    config: ServeConfig,
    directory: ModelDirectory,
    voices: Voices,
    step: int | None,
    users: UserFolder | None = None,
) -> tuple[PagedEngine, Served]:
    """The engine, its programs compiled, and the links of what it speaks with.

    Raises `InputError` for a model or sizes that cannot be served.
    """
    mesh = None if config.mesh is None else make_mesh(config.mesh)
    params = directory.load_params(step=step, dtype=config.dtype, mesh=mesh)
    engine = PagedEngine(
        voices.config,
        params,
        stop_ids=voices.tokenizer.eos_ids,
        settings=config.engine,
        mesh=mesh,
        dtype=config.dtype,
        adaptations=None if users is None else users.get,
    )
    engine.warm_up()
    if (
        jax.process_count() > 1 and step is not None
    ):  # no process sees all weights, so it is the files that are looked at
        check_step(directory, step)
    return engine, Served.of(directory, step or 0, params, engine)


def follow_leader(config: ServeConfig, cluster: Cluster) -> None:
    """What every process but the first does where a model is spread over several: as process 0 says, until it ends."""
    directory = ModelDirectory.open(config.model)
    # the leader says when it is over, having finished what runs
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    engine, _ = make_engine(config, directory, Voices.of(directory), agreed_step(None))
    follow(engine, join(cluster))


def make_service(config: ServeConfig, cluster: Cluster | None = None) -> Service:
    """The service, not yet started; on process 0, which leads the others of a cluster.

    Raises `InputError` for everything that is not as the configuration says.
    """
    gate = Gate(
        KeyRing(Path(config.keys).expanduser()) if config.keys else None,
        None if config.jwt is None else Tokens(config.jwt),
    )
    policy = read_policy(Path(config.policy).expanduser()) if config.policy else None
    directory = ModelDirectory.open(config.model)
    name = config.name or directory.path.resolve().name
    traces = make_traces(name) if config.tracing else None
    kept = Path(config.personas).expanduser() if config.personas else None
    voices = Voices.of(directory)
    if kept is not None:
        voices = roster.restore(voices, kept)
    encoder = SentenceEncoder(config.encoder) if config.encoder else None
    users = UserFolder(Path(config.users).expanduser(), voices.config) if config.users else None
    engine, served = make_engine(config, directory, voices, agreed_step(_step(directory)), users)
    alone = cluster is None or cluster.num_processes == 1
    store = None
    if config.memory:  # of several processes this one alone remembers
        mesh = engine.mesh if alone else None
        store = open_store(config.memory, encoder=encoder, key=config.memory_key or None, mesh=mesh)
    return Service.of(
        engine if alone or cluster is None else Leader(engine, lead(cluster)),
        voices,
        config.limits,
        gate=gate,
        policy=policy,
        roster=kept,
        users=users,
        embedder=encoder,
        store=store,
        store_encoder=encoder,
        lineage=replace(served, store=store),
        reloader=DirectoryReloader(directory, engine, config.dtype, store) if alone else None,
        name=name,
        host="" if config.open else config.host,
        traces=traces,
    )


def make_traces(name: str) -> "Traces":
    """Traces of a server of that name. Raises `InputError` without the packages, and for variables OTEL_* that ask for
    what is not done here."""
    try:
        from abi_jax.serve.http.tracing import Traces

        return Traces.from_environment(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"tracing = True needs {error.name}, which is not installed: pip install 'abi-jax[otel]'"
        ) from None


def _step(directory: ModelDirectory) -> int | None:
    """The step to speak with."""
    step, _ = Provenance(directory.path).newest(selected=True)
    return directory.selected_step() if step is None else step

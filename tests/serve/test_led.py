"""An engine over two processes, led by one: the same answers as of one device, and nobody else is listened to."""

import io
import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.serve.engine.led import Leader
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.scheduler import Scheduler, Ticket, Token
from abi_jax.sharding.local import LocalConfig, launch
from tests.model.meshes import wide
from tests.serve.jobs import run
from tests.serve.test_paged import SIZES, VOICES, Every, ask

INT8 = {"quantization": "int8", "kv_cache_dtype": "int8"}
PROGRAM = """
import json
from dataclasses import replace
from abi_jax.sharding import initialize, make_mesh
cluster = initialize()
import jax
from abi_jax.serve.engine.led import Leader, follow, join, lead
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.sharding.mesh import MeshConfig
from tests.model.meshes import wide
from tests.serve.test_led import told, jobs
from tests.serve.test_paged import SIZES

mesh = make_mesh(MeshConfig(data=1, tensor=4))
config, params = wide(mesh)
engine = PagedEngine(config, params, settings=replace(SIZES, **OPTIONS), mesh=mesh)
if jax.process_index():
    follow(engine, join(cluster))
    print("followed", engine.usage().used)
else:
    leader = Leader(engine, lead(cluster))
    print(json.dumps([told(leader, jobs()), told(leader, jobs()[::-1])]))
    leader.close()
"""


def jobs() -> list[Job]:
    """Of every kind: mixed, cached, constrained, with log-probabilities; more than there are slots."""
    plain = [ask(n, seed=7, mixture=VOICES[i % 4], max_tokens=5) for i, n in enumerate((5, 30, 45, 45, 20, 33))]
    special: list[dict[str, Any]] = [{"grammar": Every(3)}, {"logprobs": 2}, {"prompt_logprobs": 1}]
    return plain + [replace(plain[1], **settings) for settings in special]


def told(engine: Any, asked: list[Job]) -> list[Any]:
    """Tokens of each job."""
    scheduler, tickets = Scheduler(engine), [Ticket(job) for job in asked]
    for ticket in tickets:
        scheduler.submit(ticket)
    cancelled = Ticket(ask(9, max_tokens=20))
    scheduler.submit(cancelled)
    events = run(scheduler, until=lambda: cancelled.produced > 1)
    scheduler.cancel(cancelled)
    events += run(scheduler)
    return [[e.id for of, e in events if of is t and isinstance(e, Token)] for t in tickets]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"lookup": 3}, pytest.param(INT8, marks=pytest.mark.thorough)], ids=["guesses", "int8"]
)
def test_two_processes_answer_as_one_device_does(options: dict[str, Any]) -> None:
    out = io.StringIO()
    program = PROGRAM.replace("OPTIONS", repr(options))
    local = LocalConfig(command=(sys.executable, "-c", program), processes=2, devices=2)
    assert launch(local, stdout=out, stderr=sys.stderr) == 0, out.getvalue()
    lines = [line.partition("] ")[2] or line for line in out.getvalue().splitlines()]
    assert "followed 0" in "\n".join(lines)
    answers, again = next(json.loads(line) for line in lines if line.startswith("[["))
    one = PagedEngine(*wide(), settings=replace(SIZES, **options))
    assert answers == told(one, jobs())
    assert again == answers[::-1]


def test_users_adaptations_are_refused() -> None:
    config, params = wide()
    engine = PagedEngine(config, params, settings=replace(SIZES, users=1))
    with pytest.raises(InputError, match=r"engine\.users = 1 on several processes"):
        Leader(engine, [])

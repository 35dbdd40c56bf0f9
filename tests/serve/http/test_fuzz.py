"""What schemathesis makes of the description of the interface: requests that fit it, and requests that do not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.users import UserFolder
from tests.serve.http.serving import ObedientEngine, banked, serving
from tests.serve.http.test_reload import OfStep, Steps
from tests.serve.http.test_store import encoder
from tests.serve.http.test_texts import Lengths, Polite

pytest.importorskip("schemathesis", reason="the package schemathesis is not installed")

LIMITS = Limits(max_waiting=10_000)
# Names that are there: what is made up is a 404 before anything else is looked at.
HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "lengths" if "embeddings" in context.operation.path else "abbey"
    return body

@schemathesis.hook
def map_path_parameters(context, parameters):
    return {**parameters, "collection": "notes"} if parameters and "collection" in parameters else parameters
"""


@pytest.mark.parametrize(
    ("phases", "each", "least"),
    [
        ("fuzzing", 8, 150),
        pytest.param("examples,coverage,fuzzing,stateful", 200, 5_000, marks=pytest.mark.thorough),
    ],
    ids=["some", "5000 cases"],
)
@pytest.mark.slow
def test_no_request_is_the_servers_fault(tmp_path: Path, phases: str, each: int, least: int) -> None:
    speaking = banked()
    engine = ObedientEngine(vocab_size=400, slots=16)
    with (
        wdbx.open(tmp_path / "store.wdbx", encoder=encoder) as store,
        serving(
            engine,
            LIMITS,
            speaking,
            store=store,
            store_encoder=encoder,
            embedder=Lengths(),
            moderator=Polite(),
            users=UserFolder(tmp_path / "users", speaking.config),
            reloader=Steps(engine, voices=speaking),
            lineage=OfStep(0),
        ) as running,
    ):
        store.create_collection("notes", encoder=encoder).upsert(["a"], documents=["Builds fail."])
        (tmp_path / "names.py").write_text(HOOKS)
        told = tmp_path / "report.json"
        command = [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"),
            *(f"{running.url}/openapi.json", "--url", running.url, "--checks", "not_a_server_error"),
            *(
                "--phases",
                phases,
                "--max-examples",
                str(each),
                "--seed",
                "7",
                "--continue-on-failure",
                "--request-timeout",
                "600",
            ),
            *("--suppress-health-check", "all", "--report", "json", "--report-json-path", str(told)),
        ]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "names", "PYTHONPATH": str(tmp_path)}
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3000, env=environment)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
        assert json.loads(told.read_text())["test_cases"]["generated"] >= least, told.read_text()[:2000]
        assert running.http.get("/health").status_code == 200
        assert running.http.get("/metrics").status_code == 200

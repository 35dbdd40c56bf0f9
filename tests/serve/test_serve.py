"""`abi serve`: a model directory, to the official client, until SIGTERM."""

import json
import shutil
import signal
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jax
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from abi_jax.config import config_dirs, dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.lineage_digest import digest_tree
from abi_jax.model.decoder import Decoder
from abi_jax.model.directory import PARAMS, ModelDirectory
from abi_jax.model.provenance import Provenance, named
from abi_jax.model.weight import describe, initialize
from abi_jax.serve.config import ServeConfig
from abi_jax.serve.reload import check_step
from tests.serve.http.serving import ASKED, PATIENCE, serving
from tests.serve.process import served, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model that was never trained."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


def add_step(path: Path, step: int) -> None:
    """Other weights, and their link."""
    directory = ModelDirectory.open(path)
    params = initialize(describe(lambda: Decoder(directory.config))[1], jax.random.key(step))
    directory.save_params(step, params)
    Provenance(path).add(step, digest_tree(named(PARAMS, params)), dump_yaml(directory.config), {})


@pytest.mark.slow
def test_the_official_client_is_served_until_sigterm(model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model, tmp_path / "model")
    kept, memory = tmp_path / "personas.yaml", tmp_path / "memory.wdbx"
    options = ("--set", f"personas={kept}", "--set", f"memory={memory}")
    with served(model, *options) as (url, process, lines):
        client: Any = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE)
        http = httpx.Client(base_url=url, timeout=PATIENCE)
        assert [each.id for each in client.models.list()] == ["abbey", "aviva", "base"]
        settings: dict[str, Any] = {"messages": ASKED, "seed": 1, "temperature": 1.0, "max_tokens": 12}
        answers = [client.chat.completions.create(model=name, **settings) for name in ("abbey", "base", "abbey")]
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts[0] == texts[2]
        assert answers[0].abi["lineage"]["model"]["step"] == 0 and len(answers[0].abi["lineage"]["model"]["link"]) == 64
        assert answers[0].abi["lineage"]["memory"]["version"] == 0
        asked = client.completions.create(
            model="base", prompt="the quick brown", max_tokens=0, echo=True, logprobs=1, temperature=0
        )
        assert all(value < 0 for value in asked.choices[0].logprobs.token_logprobs[1:])
        exact = client.chat.completions.create(model="abbey", **settings, extra_body={"regex": "[ab]{3}"})
        assert set(exact.choices[0].message.content) <= {"a", "b"} and exact.choices[0].finish_reason == "stop"
        http.post("/wdbx/collections", json={"name": "notes", "dim": 2}).raise_for_status()
        blend = {"name": "nova", "like": {"abbey": 0.5, "aviva": 0.5}}
        http.post("/abi/personas", json=blend).raise_for_status()
        assert client.chat.completions.create(model="nova", **settings).abi["lineage"]["memory"]["version"] == 1
        add_step(model, 1)
        told = http.post("/abi/reload", json={}).json()
        assert (told["previous"]["model"]["step"], told["lineage"]["model"]["step"]) == (0, 1)
        other = client.chat.completions.create(model="abbey", **settings)
        assert other.abi["lineage"]["model"]["step"] == 1 and other.choices[0].message.content != texts[0]
        assert client.chat.completions.create(model="nova", **settings).choices
        back = http.post("/abi/reload", json={"step": 0})
        assert back.json()["lineage"]["model"]["step"] == 0
        again = client.chat.completions.create(model="abbey", **settings)
        assert again.choices[0].message.content == texts[0]
        stream = client.chat.completions.create(
            model="abbey", messages=ASKED, stream=True, extra_body={"ignore_eos": True}, max_tokens=60
        )
        chunks = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        http.close()
        assert process.wait(PATIENCE) == 0
        assert process.stdout is not None and json.loads(process.stdout.read())["model"] == str(model)
    told = [line["message"] for line in lines]
    assert told.index("serving") < told.index("draining") < told.index("drained")
    assert kept.is_file() and memory.is_dir()


def test_a_step_is_checked_before_it_is_loaded(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(model, path)
    add_step(path, 7)
    directory = ModelDirectory.open(path)
    assert (check_step(directory, None), check_step(directory, 0)) == (7, 0)
    with pytest.raises(InputError, match=r"step 3 of '.*' is not there, or has no link; there: 0, 7"):
        check_step(directory, 3)
    victim = max((path / "checkpoints" / "7").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(InputError, match=r"step 7 of .* not what its link stands for: checkpoints/7/.* is changed"):
        check_step(directory, None)
    (path / "lineage" / "1.json").write_text("{}")
    with pytest.raises(InputError, match="not what link 1 of"):
        check_step(directory, 0)


def test_a_certificate_makes_it_https(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    (tmp_path / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(secret)
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    with serving(uvicorn=files) as running:
        trust = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        answer = httpx.get(f"https://localhost:{running.port}/ready", verify=trust, timeout=PATIENCE)
        assert answer.json()["ok"]


def test_configurations_that_come_with_the_package() -> None:
    (folder,) = config_dirs("serve")[-1:]
    for path in folder.glob("*.yaml"):
        assert load(ServeConfig, path, env={}).port == 8000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from elsewhere, and there are no keys"),
        ({"host": "example.org"}, "there are no keys"),
        ({"port": 70000}, "port = 70000"),
        ({"dtype": "float8"}, "dtype = 'float8'"),
        ({"policy": "p.json"}, "policy = 'p.json'; expected memory and keys"),
    ],
)
def test_servers_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServeConfig(model="x", **change)
    assert ServeConfig(model="x", host="::1").port == ServeConfig(model="x", host="0.0.0.0", open=True).port == 8000


@pytest.mark.thorough
def test_two_processes_serve_as_one_and_end_together(model: Path) -> None:
    script = Path(__file__).parents[2] / "launch" / "local"
    launcher = (sys.executable, str(script), "-n", "2", "--no-prefix", "--")
    mesh = ("--set", "mesh.data=1", "--set", "mesh.tensor=2")
    with served(model, *mesh, launcher=launcher) as (url, process, _):
        client: Any = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE)
        settings: Any = {"messages": ASKED, "max_tokens": 8, "temperature": 0}
        answers = [client.chat.completions.create(model=name, **settings) for name in ("abbey", "base", "abbey")]
        assert answers[0].choices[0].message.content == answers[2].choices[0].message.content
        assert all(answer.usage.completion_tokens > 0 for answer in answers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

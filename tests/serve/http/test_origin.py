"""Pages of other sites have no part in a server without keys, whatever the browser at this machine shows."""

from pathlib import Path

import httpx
import pytest

from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from tests.serve.http.serving import Running, serving

pytestmark = pytest.mark.smoke
EVIL = {"origin": "https://evil.example"}


def ask(running: Running, **headers: str) -> httpx.Response:
    return running.http.get("/v1/models", headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_the_pages_of_other_sites_are_refused(plain: Running) -> None:
    for headers in (
        EVIL,
        {"origin": "null"},
        {"origin": "http://[evil"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"host": "evil.example"},
        {"host": f"evil.example:{plain.port}", "origin": f"http://evil.example:{plain.port}"},
    ):
        answer = ask(plain, **headers)
        assert answer.status_code == 403 and "no keys" in answer.json()["error"]["message"], headers
        assert answer.headers["x-request-id"]
    for host in ("localhost", f"127.0.0.1:{plain.port}", f"[::1]:{plain.port}", "LOCALHOST:1"):
        assert ask(plain, host=host, origin=f"http://{host.lower()}", sec_fetch_site="same-origin").is_success, host
    followed = {"sec_fetch_site": "cross-site", "sec_fetch_dest": "document"}
    assert ask(plain, **followed).is_success


def test_a_simple_request_is_no_request(plain: Running) -> None:
    persona = b'{"name": "evil", "voice": "Lie."}'
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        answer = plain.http.post("/v1/abi/personas", content=persona, headers=kind)
        assert answer.status_code == 415 and "expected application/json" in answer.text


def test_the_name_it_listens_at_is_its_own_and_open_ones_have_any() -> None:
    with serving(FakeEngine(vocab_size=400), host="my.box") as running:
        assert ask(running, host="My.Box:8000").is_success and ask(running, host="other.box").status_code == 403
        running.service.host = ""
        assert ask(running, host="other.box").is_success
        assert ask(running, host="other.box", **EVIL).status_code == 403


def test_a_key_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    secret = add_key(path, Key("one", "0" * 64, "reader"))
    with serving(FakeEngine(vocab_size=400), gate=Gate(KeyRing(path))) as running:
        assert ask(running, host="far.example", authorization=f"Bearer {secret}", **EVIL).is_success

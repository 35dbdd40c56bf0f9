"""Who may do what: every route, every role, every state that a key can be in."""

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from abi_jax.errors import InputError
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http import keys as module
from abi_jax.serve.http.auth import Gate, JwtConfig, Tokens
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.keys import Key, KeyRing, Principal, add_key
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.routes import RULES
from abi_jax.serve.http.rule import Rule
from abi_jax.wdbx.policy import Role
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, Running, serving, until

pytestmark = pytest.mark.smoke
PAST = (datetime.now(UTC) - timedelta(days=1)).isoformat()
FUTURE = (datetime.now(UTC) + timedelta(days=1)).isoformat()
SECRET = "not-a-secret-but-long-enough-for-it"
GOOD = ("reader", "writer", "admin")
BAD = ("none", "wrong", "expired", "expired token", "forged token", "half a token")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Keys of all kinds by name, and the gate that knows them."""
    folder = tmp_path_factory.mktemp("keys")
    path, shared = folder / "keys.yaml", folder / "shared"
    found = {role: add_key(path, Key(role, "0" * 64, role, "acme", FUTURE)) for role in GOOD}
    found["root"] = add_key(path, Key("root", "0" * 64, "admin"))
    found["expired"] = add_key(path, Key("late", "0" * 64, "admin", expires=PAST))
    shared.write_text(SECRET)
    config = JwtConfig(key_file=str(shared), issuer="us", audience="abi")
    now = int(time.time())
    claims = {"sub": "somebody", "iss": "us", "aud": "abi", "role": "admin", "tenant": "acme"}

    def sign(secret: str = SECRET, **changes: Any) -> str:
        return jwt.encode({"exp": now + 600} | claims | changes, secret, "HS256")

    found |= {"wrong": "abi-" + "x" * 43, "expired token": sign(exp=now - 10), "forged token": sign(SECRET[::-1])}
    found |= {"half a token": "a.b.c", "token": sign(), "token of a reader": sign(role="reader")}
    found |= {"token of others": sign(aud="them"), "token without a role": sign(role="king")}
    return {"found": found, "gate": Gate(KeyRing(path), Tokens(config)), "folder": folder, "path": path}


@pytest.fixture(scope="module")
def guarded(secrets: dict[str, Any]) -> Iterator[Running]:
    """A server that asks for keys."""
    with serving(FakeEngine(vocab_size=400), gate=secrets["gate"]) as running:
        yield running


def call(running: Running, rule: Rule, secret: str | None) -> Any:
    path = re.sub(r"{[^}]*}", "x", rule.path)
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    return running.http.request(rule.method, path, headers=headers, json={} if rule.body else None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.method} {rule.path}")
def test_every_route_for_every_key(guarded: Running, secrets: dict[str, Any], rule: Rule) -> None:
    for state in (*BAD, *GOOD):
        answer = call(guarded, rule, secrets["found"].get(state))
        if rule.role is None:
            assert answer.status_code == 200, state
        elif state in BAD:
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), state
            assert answer.json()["error"]["type"] == "authentication_error"
        elif Role[state.upper()] < rule.role:
            assert answer.status_code == 403, state
            assert f"expected {rule.role.name.lower()}" in answer.json()["error"]["message"]
        elif rule.shared:
            assert answer.status_code == 403 and "changes all tenants" in answer.json()["error"]["message"], state
        else:
            assert answer.status_code not in (401, 403) and answer.status_code < 500, (state, answer.text)
    answer = call(guarded, rule, secrets["found"]["root"])
    assert answer.status_code not in (401, 403) and answer.status_code < 500, answer.text


def test_what_all_tenants_use_is_changed_by_no_tenant() -> None:
    shared = {(rule.method, rule.path) for rule in RULES if rule.shared}
    one = "/v1/abi/personas/{name}"
    assert shared == {("POST", "/v1/abi/personas"), ("PUT", one), ("DELETE", one), ("POST", "/v1/abi/reload")}


def test_a_token_is_as_good_as_a_key(guarded: Running, secrets: dict[str, Any]) -> None:
    found = secrets["found"]
    assert guarded.openai(found["token"]).models.list().data
    for name in ("token of others", "token without a role"):
        with pytest.raises(openai.AuthenticationError):
            guarded.openai(found[name]).models.list()


def test_tokens_signed_with_a_private_key(tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    tokens = Tokens(JwtConfig("RS256", str(tmp_path / "public.pem")))
    claims = {"sub": "a", "exp": int(time.time()) + 60, "role": "writer", "tenant": "t"}
    who = tokens.read(jwt.encode(claims, private, "RS256"))
    assert (who.name, who.role, who.tenant) == ("jwt:a", Role.WRITER, "t")
    header, body, _ = jwt.encode(claims, "x" * 40, "HS256").split(".")
    unsigned = jwt.encode(claims, None, "none")  # type: ignore[arg-type]
    for forged in (jwt.encode(claims, "x" * 40, "HS256"), f"{header}.{body}.", unsigned):
        with pytest.raises(Exception, match="not accepted"):
            tokens.read(forged)
    del claims["exp"]
    with pytest.raises(Exception, match="exp"):
        tokens.read(jwt.encode(claims, private, "RS256"))


def test_a_token_without_a_tenant_speaks_for_none_only_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text(SECRET)
    strict = JwtConfig(key_file=str(tmp_path / "shared"))
    claims = {"sub": "a", "exp": int(time.time()) + 60, "role": "reader"}
    for told in ({}, {"tenant": ""}, {"tenant": None}):
        token = jwt.encode(claims | told, SECRET, "HS256")
        with pytest.raises(Exception, match="claim 'tenant' is no tenant's name"):
            Tokens(strict).read(token)
        assert Tokens(replace(strict, tenant_optional=True)).read(token).tenant == ""
    for wrong in ("a.b", 7, False, ["acme"]):
        with pytest.raises(Exception, match="claim 'tenant' is no tenant's name"):
            Tokens(replace(strict, tenant_optional=True)).read(jwt.encode(claims | {"tenant": wrong}, SECRET, "HS256"))


@pytest.mark.parametrize("subject", ["", "a b", "a\n", "é", "x" * 257])
def test_a_subject_that_is_no_name_is_refused(tmp_path: Path, subject: str) -> None:
    (tmp_path / "shared").write_text(SECRET)
    claims = {"sub": subject, "exp": int(time.time()) + 60, "role": "reader", "tenant": "t"}
    with pytest.raises(ApiError, match="'sub'"):
        Tokens(JwtConfig(key_file=str(tmp_path / "shared"))).read(jwt.encode(claims, SECRET, "HS256"))


def test_the_log_and_the_answers_hold_no_secret(
    guarded: Running, secrets: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for name, secret in secrets["found"].items():
        answer = guarded.http.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
        assert secret not in answer.text, name
    seen = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert not any(secret in seen for secret in secrets["found"].values() if len(secret) > 10)
    assert not any(secret in secrets["path"].read_text() for secret in secrets["found"].values() if len(secret) > 10)


def test_keys_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    few = add_key(path, Key("few", "0" * 64, requests_per_minute=2))
    small = add_key(path, Key("small", "0" * 64, tokens_per_minute=60))
    free = add_key(path, Key("free", "0" * 64))
    with serving(FakeEngine(vocab_size=400), gate=Gate(KeyRing(path))) as running:
        assert [running.http.get("/v1/models", headers=bearer(few)).status_code for _ in range(3)] == [200, 200, 429]
        limited = running.http.get("/v1/models", headers=bearer(few))
        assert 1 <= int(limited.headers["retry-after"]) <= 31 and "2 requests a minute" in limited.text
        asked = {"model": "base", "messages": ASKED, "max_tokens": 100}
        answers = [running.http.post("/v1/chat/completions", json=asked, headers=bearer(small)) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert all(running.http.get("/v1/models", headers=bearer(free)).status_code == 200 for _ in range(9))


def test_every_answer_of_a_request_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    few = add_key(path, Key("few", "0" * 64, requests_per_minute=4))
    with serving(FakeEngine(vocab_size=400), gate=Gate(KeyRing(path))) as running:
        asked = {"model": "base", "messages": ASKED, "max_tokens": 1, "n": 6}
        answers = [running.http.post("/v1/chat/completions", json=asked, headers=bearer(few)) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert 30 < int(answers[1].headers["retry-after"]) <= 46


def test_who_asks_for_much_leaves_places_for_others(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    of = {
        name: add_key(path, Key(name, "0" * 64, tenant=tenant))
        for name, tenant in (("one", "acme"), ("two", "acme"), ("three", ""), ("four", ""))
    }
    with serving(FakeEngine(slots=1, **LASTING), Limits(max_waiting=8), gate=Gate(KeyRing(path))) as running:

        def ask(name: str, n: int) -> httpx.Response:
            body = {"model": "base", "messages": ASKED, "max_tokens": ENDLESS, "n": n}
            return running.http.post("/v1/abi/process", json=body, headers=bearer(of[name]))

        assert ask("one", 1).status_code == 202
        until(lambda: (running.service.worker.load.waiting, running.service.worker.load.speaking) == (0, 1))
        for name, n, status in (
            ("one", 4, 202),
            ("two", 1, 429),
            ("three", 3, 429),
            ("three", 2, 202),
            ("four", 1, 202),
        ):
            assert ask(name, n).status_code == status, (name, n)
        refused = ask("two", 1)
        assert refused.json()["error"]["code"] == "queue_full" and int(refused.headers["retry-after"]) >= 1
        assert "4 requests of tenant acme are waiting already" in refused.text


@pytest.mark.parametrize(("keyed", "most"), [(True, 5), (False, 10)])
def test_what_can_never_wait_is_not_to_be_asked_again(tmp_path: Path, keyed: bool, most: int) -> None:
    secret = add_key(tmp_path / "keys.yaml", Key("one", "0" * 64))
    gate = Gate(KeyRing(tmp_path / "keys.yaml")) if keyed else Gate()
    with serving(limits=Limits(max_waiting=10), gate=gate) as running:
        body = {"model": "base", "messages": ASKED, "max_tokens": 1}
        for n, status in ((most, 200), (most + 1, 400)):
            answer = running.http.post("/v1/chat/completions", json={**body, "n": n}, headers=bearer(secret))
            assert answer.status_code == status
        assert answer.json()["error"]["param"] == "n"
        assert f"n = {most + 1}: expected at most {most} choices" in answer.text
        assert "max_waiting = 10" in answer.text


def test_limits_of_a_key_may_change_and_be_less_than_one_a_minute() -> None:
    gate = Gate()

    def taken(a_minute: float) -> int:
        who, count = Principal("a", Role.READER, requests_per_minute=a_minute), 0
        with pytest.raises(ApiError, match="requests a minute"):
            while count < 100:
                gate.admit(who)
                count += 1
        return count

    assert taken(0.5) == 1  # one at once, the next in two minutes
    assert taken(30) == 0
    bucket = gate._buckets["", "a", "requests"]
    bucket.at -= 4
    assert taken(30) == 2  # filled at the rate of now
    bucket.at -= 1000
    assert taken(3) == 3


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_a_file_of_keys_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", -1.0)
    path = tmp_path / "keys.yaml"
    first = add_key(path, Key("first", "0" * 64, "writer"))
    assert path.stat().st_mode & 0o777 == 0o600
    ring = KeyRing(path)
    second = add_key(path, Key("second", "0" * 64))
    assert all(ring.find(secret) is not None for secret in (first, second))
    path.write_text("keys: [")  # half a file
    assert ring.find(first) is not None
    path.unlink()
    assert ring.find(first) is None
    third = add_key(path, Key("third", "0" * 64))
    assert ring.find(third) is not None and ring.find(first) is None
    path.write_text("keys: []\n")
    assert ring.find(third) is None
    with pytest.raises(InputError, match="stands for two keys"):
        for _ in range(2):
            add_key(path, Key("twice", "0" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "king"}, "role = 'king' of key 'a'; expected one of reader, writer, admin"),
        ({"sha256": "1234"}, "sha256 of key 'a' is not 64 hexadecimal digits"),
        ({"name": "a b"}, "name = 'a b'"),
        ({"expires": "soon"}, "expires = 'soon' of key 'a'"),
        ({"tenant": "a/b"}, "tenant = 'a/b'"),
        ({"tokens_per_minute": -1.0}, "expected numbers from 0"),
    ],
)
def test_keys_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Key(**{"name": "a", "sha256": "0" * 64} | change)


def test_metrics_are_told_by_persona(plain: Running) -> None:
    client = plain.openai()
    for model, _ in itertools.product(("abbey", "abbey=0.5,aviva=0.5"), range(2)):
        client.chat.completions.create(model=model, messages=ASKED, max_tokens=5)
    list(client.chat.completions.create(model="aviva", messages=ASKED, max_tokens=5, stream=True))
    text = plain.http.get("/metrics").text
    for name in (
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
        *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
        "request_time_per_output_token_seconds",
    ):
        for persona in ("abbey", "aviva", "mixture"):
            assert value(text, f"{name}_count", persona) > 0, name
    assert value(text, "generation_tokens_total", "mixture") >= 10
    assert value(text, "request_success_total", "aviva") >= 1
    assert "abi:num_requests_running{" in text and "abi:kv_cache_usage_perc{" in text
    assert re.search(r'abi:http_requests_total{handler="/v1/chat/completions",method="POST",status="200"}', text)
    plain.http.get("/nothing/of/the/kind")
    assert "kind" not in plain.http.get("/metrics").text
    opened = plain.http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text") and "# EOF" in opened.text


def value(text: str, name: str, persona: str) -> float:
    found = re.findall(rf'^abi:{name}{{[^}}]*persona="{persona}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))

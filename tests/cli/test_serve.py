"""`abi key`, and what `abi serve` refuses; what it serves is in tests/serve."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from abi_jax.serve.http.keys import KeyRing
from tests.cli.conftest import Abi

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """The command sends its log to a stream that is a test's, and stays where its process does."""
    loggers = [logging.getLogger(name) for name in ("abi_jax.serve", "uvicorn.error", "opentelemetry")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    yield
    for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def test_a_key_is_told_once_and_opens(tmp_path: Path, abi: Abi) -> None:
    path = tmp_path / "keys.yaml"
    made = abi("key", path, "laptop", "--role", "writer", "--tenant", "acme", "--days", "1", "--json")
    assert made.status == 0 and made.json["name"] == "laptop"
    secret = made.json["key"]
    assert secret not in path.read_text()
    found = KeyRing(path).find(secret)
    assert found is not None and found[1] and (found[0].role, found[0].tenant) == ("writer", "acme")
    shown = abi("key", path, "other")
    assert KeyRing(path).find(shown.out.strip()) is not None
    for arguments, message in (
        (("laptop",), "'laptop' stands for two keys"),
        (("king", "--role", "king"), "role = 'king'"),
        (("a b",), "name = 'a b'"),
        (("late", "--tenant", "a.b"), "tenant = 'a.b'"),
    ):
        refused = abi("key", path, *arguments)
        assert refused.status == 2 and message in refused.err


def test_servers_that_cannot_be(tmp_path: Path, abi: Abi) -> None:
    (tmp_path / "serve.yaml").write_text(f"model: {tmp_path / 'nowhere'}\n")
    for arguments, message in (
        ((tmp_path / "serve.yaml",), "nowhere' does not exist"),
        ((tmp_path / "nothing.yaml",), "is neither a file nor a known name"),
        ((tmp_path / "serve.yaml", "--host", "0.0.0.0"), "there are no keys"),
        ((tmp_path / "serve.yaml", "--set", "slot=3"), "slot"),
        ((tmp_path / "serve.yaml", "--slots", "0"), "slots = 0"),
        ((tmp_path / "serve.yaml", "--keys", str(tmp_path / "none.yaml")), "none.yaml"),
    ):
        refused = abi("serve", *arguments)
        assert refused.status == 2 and message in refused.err, refused.err

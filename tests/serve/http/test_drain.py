"""A server that shuts down: what writes is finished first, what would write is refused."""

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.routes import RULES
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, PATIENCE, serving, until
from tests.serve.http.test_auth import call

pytestmark = pytest.mark.smoke
NOTES = "/v1/wdbx/collections/notes"


def test_a_write_that_has_begun_is_finished_before_the_store_closes(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> np.ndarray:
        began.set()
        assert go.wait(PATIENCE)
        return np.ones((len(texts), 3), np.float32)

    found: list[Any] = []
    with wdbx.open(tmp_path / "store.wdbx") as store:
        store.create_collection("notes", 3, encoder=slow)
        with serving(store=store, store_encoder=slow) as running:
            body = {"ids": ["a"], "documents": ["foo"]}
            writer = threading.Thread(target=lambda: found.append(running.http.post(f"{NOTES}/upsert", json=body)))
            writer.start()
            assert began.wait(PATIENCE)
            running.server.handle_exit(signal.SIGTERM, None)
            until(lambda: running.http.get("/ready").status_code == 503)
            assert running.http.post(f"{NOTES}/delete", json={"ids": ["a"]}).status_code == 503
            assert running.http.get(NOTES).status_code == 200
            assert running.service.running == 1 and not running.server.should_exit
            go.set()
            writer.join(PATIENCE)
            assert found[0].status_code == 200
            until(lambda: running.server.should_exit)
    with wdbx.open(tmp_path / "store.wdbx") as store:
        assert len(store.collection("notes")) == 1


def test_what_is_refused_while_it_shuts_down() -> None:
    with serving(FakeEngine(**LASTING)) as running:
        asked = {"model": "base", "messages": ASKED, "max_tokens": ENDLESS}
        id_ = running.http.post("/v1/abi/process", json=asked).json()["id"]
        running.server.handle_exit(signal.SIGTERM, None)
        until(lambda: running.service.draining)
        for rule in RULES:
            answer = call(running, rule, None)
            ends = (rule.method, rule.path) == ("DELETE", "/v1/abi/queries/{id}")
            if rule.method == "GET" or ends:
                assert "shutting down" not in answer.text or rule.path == "/ready", rule
            else:
                assert answer.status_code == 503 and answer.headers["retry-after"] == "5", rule
        assert running.http.delete(f"/v1/abi/queries/{id_}").json()["status"] == "cancelled"
        until(lambda: running.server.should_exit)

"""Users' own adaptations over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from abi_jax.model.users import shapes
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from abi_jax.serve.users import UserFolder
from tests.serve.http.serving import ASKED, Running, banked, serving

pytestmark = pytest.mark.smoke
BYTES = {"content-type": "application/octet-stream"}
CONFIG = banked().config
FILE = save({name: np.ones(shape, np.float32) for name, shape in shapes(CONFIG).items()})


@pytest.fixture
def adapting(tmp_path: Path) -> Iterator[Running]:
    with serving(speaking=banked(), users=UserFolder(tmp_path / "users", CONFIG)) as running:
        yield running


def test_an_adaptation_is_put_got_and_deleted(adapting: Running) -> None:
    http = adapting.http
    assert http.get("/v1/abi/users/ada").status_code == 404
    assert http.put("/v1/abi/users/ada", content=FILE, headers=BYTES).json() == {
        "id": "ada",
        "object": "abi.user",
        "adapted": True,
    }
    got = load(http.get("/v1/abi/users/ada").content)
    assert set(got) == set(shapes(CONFIG)) and all((array == 1).all() for array in got.values())
    assert http.delete("/v1/abi/users/ada").json()["adapted"] is False
    assert http.delete("/v1/abi/users/ada").status_code == 404


def test_what_does_not_fit_is_refused_and_what_was_there_stays(adapting: Running) -> None:
    http = adapting.http
    http.put("/v1/abi/users/ada", content=FILE, headers=BYTES).raise_for_status()
    for content, message in (
        (b"{}", "not a safetensors file"),
        (save({"x": np.ones(1)}), "the body holds x; expected"),
    ):
        refused = http.put("/v1/abi/users/ada", content=content, headers=BYTES)
        assert refused.status_code == 400 and message in refused.json()["error"]["message"]
    assert http.get("/v1/abi/users/ada").content == FILE


def test_the_user_of_a_request_reaches_the_engine_under_its_tenant(tmp_path: Path) -> None:
    path, seen = tmp_path / "keys.yaml", []
    keys = {name: add_key(path, Key(name, "0" * 64, "writer", name)) for name in ("red", "blue")}
    users = UserFolder(tmp_path / "users", CONFIG)
    with serving(speaking=banked(), users=users, gate=Gate(KeyRing(path))) as running:
        engine: Any = running.service.worker.engine
        check = engine.check

        def watched(job: Any) -> None:
            seen.append(job.user)
            check(job)

        engine.check = watched
        for name, key in keys.items():
            headers = {"authorization": f"Bearer {key}", **BYTES}
            if name == "red":
                running.http.put("/v1/abi/users/ada", content=FILE, headers=headers).raise_for_status()
            body = {"abi": {"user": "ada"}}
            running.openai(key).chat.completions.create(model="abbey", messages=ASKED, extra_body=body)
        blue = {"authorization": f"Bearer {keys['blue']}"}
        assert running.http.get("/v1/abi/users/ada", headers=blue).status_code == 404
    assert seen == ["red/ada", "blue/ada"]
    assert users.get("red/ada") is not None and users.get("blue/ada") is None


def test_a_server_that_keeps_none_says_so(plain: Running) -> None:
    assert "keeps no users" in plain.http.get("/v1/abi/users/ada").json()["error"]["message"]

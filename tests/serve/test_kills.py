"""A server is killed, again and again: what it acknowledged is there, and what it said can be said again."""

import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from abi_jax import wdbx
from abi_jax.model.directory import ModelDirectory
from abi_jax.serve.receipt import read
from abi_jax.serve.replay import Replayer
from tests.serve.http.serving import PATIENCE, until
from tests.serve.process import served, write_tiny

KILLS = 4
DIM, TOGETHER = 8, 3  # of a row; rows of one write
MEMORY = {"collection": "notes", "query": "compiler", "mode": "keyword", "top_k": 2}
ASK: dict[str, Any] = {
    "model": "abbey",
    "messages": [{"role": "user", "content": "Why does my build fail?"}],
    "seed": 7,
    "temperature": 1.0,
    "max_tokens": 40,
    "ignore_eos": True,
    "abi": {"receipt": True, "memory": MEMORY},
}


class Client:
    """Writes and asks until the server is gone."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[float]] = {}
        self.writes: list[list[str]] = []
        self.version = 0
        self.cut = 0  # streams that ended before their end
        self.beginning: set[int] = set()  # threads whose stream has said something, and little of it

    def write(self, url: str, turn: int) -> None:
        """A write after the other."""
        with httpx.Client(timeout=PATIENCE) as http:
            for n in range(10_000):
                ids = [f"{turn}-{n}-{i}" for i in range(TOGETHER)]
                rows = {each: [float(turn), float(n), float(i)] + [0.5] * (DIM - 3) for i, each in enumerate(ids)}
                body = {"ids": ids, "vectors": list(rows.values()), "documents": [f"note {each}" for each in ids]}
                self.writes.append(ids)
                try:
                    answer = http.post(f"{url}/wdbx/collections/notes/upsert", json=body)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                self.acknowledged |= rows
                self.version = answer.json()["version"]

    def listen(self, url: str) -> None:
        """A stream after the other."""
        me = threading.get_ident()
        with httpx.Client(timeout=PATIENCE) as http:
            while True:
                said: list[str] = []
                try:
                    with http.stream("POST", f"{url}/chat/completions", json=ASK | {"stream": True}) as stream:
                        for line in filter(None, stream.iter_lines()):
                            said.append(line)
                            (self.beginning.add if len(said) < 10 else self.beginning.discard)(me)
                except httpx.TransportError:
                    self.cut += bool(said)
                    return
                finally:
                    self.beginning.discard(me)
                assert said[-1] == "data: [DONE]"


def check_store(path: Path, client: Client) -> None:
    """Looks at a copy of a store, as a kill left it: whole, every acknowledged row there, every write all or none."""
    with wdbx.open(path) as store:
        assert store.verify() == []
        assert store.version is not None and store.version >= client.version
        notes = store.collection("notes")
        ids = [each for write in client.writes for each in write]
        rows = dict(zip(ids, notes.get(ids), strict=True)) if ids else {}
        for each, vector in client.acknowledged.items():
            row = rows[each]
            assert row is not None and row.vector.tolist() == vector, each
        for write in client.writes:
            assert len({rows[each] is None for each in write}) == 1, write


def ask(url: str) -> Any:
    """An answer with its receipt."""
    answer = httpx.post(f"{url}/chat/completions", json=ASK, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    model, store = write_tiny(tmp_path / "tiny"), tmp_path / "memory.wdbx"
    rng, client = random.Random(7), Client()
    answers: list[Any] = []
    for turn in range(KILLS + 1):
        with served(model, "--set", f"memory={store}") as (url, process, _):
            if not turn:
                made = {"name": "notes", "dim": DIM, "metric": "l2", "fields": {"document": "str"}}
                httpx.post(f"{url}/wdbx/collections", json=made, timeout=PATIENCE).raise_for_status()
                known = {"ids": ["a", "b"], "vectors": [[9.0] * DIM, [8.0] * DIM]}
                known["documents"] = ["the compiler is old", "a compiler warns"]
                upsert = f"{url}/wdbx/collections/notes/upsert"
                httpx.post(upsert, json=known, timeout=PATIENCE).raise_for_status()
            answers.append(ask(url))
            if turn == KILLS:
                break
            threads = [threading.Thread(target=client.write, args=(url, turn))]
            threads += [threading.Thread(target=client.listen, args=(url,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.2, 1.2))
            enough = (turn + 1) * 2 * TOGETHER
            until(lambda enough=enough: len(client.acknowledged) >= enough and client.beginning)  # type: ignore[misc]
            process.kill()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
        check_store(shutil.copytree(store, tmp_path / f"copy-{turn}"), client)
    assert client.cut > 0 and len(client.acknowledged) > KILLS * TOGETHER
    said = {answer["choices"][0]["message"]["content"] for answer in answers}
    remembered = {tuple(each["id"] for each in answer["abi"]["memories"]) for answer in answers}
    assert len(said) == len(remembered) == 1, "rows that the question does not find change no answer"
    with wdbx.open(store, mode="r") as left:
        replayer = Replayer(ModelDirectory.open(model), store=left)
        for answer in answers:
            found = replayer.replay(read(json.loads(json.dumps(answer)), "answer"))
            assert found.identical and not found.different, found

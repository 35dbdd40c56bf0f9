"""Places for a store of objects: in memory, and in a server of this process that speaks as S3 and Google's do."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.lease import DOMAIN, read_lease
from abi_jax.wdbx.storage.objects import ObjectStorage
from abi_jax.wdbx.storage.place import open_storage
from abi_jax.wdbx.witness import checked_json
from tests.wdbx.crashes import Quick
from tests.wdbx.storage.object_server import Server, serve

BUCKET = "bucket"


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    with serve(BUCKET) as server:
        set_ = {
            "TENSORSTORE_GCS_HTTP_URL": server.address,  # which tensorstore reads once a process
            "AWS_ENDPOINT_URL": server.address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        before = {name: os.environ.get(name) for name in set_}
        os.environ.update(set_)
        yield server
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """The server, behaving."""
    yield _server
    _server.fault, _server.conditions = (lambda method, key: ""), True
    with _server.changing:
        _server.objects[BUCKET].clear()
    _server.requests.clear()


def save_quickly(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as files, without Orbax."""
    Quick().save_arrays(folder, arrays)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abi_jax.wdbx.storage.lease.PATIENCE", 0.02)


def end_lease(storage: ObjectStorage) -> None:
    """Ends the lease of whoever has it, as time does."""
    lease = read_lease(storage.read("lock"))
    if lease is not None:
        storage.objects.put("lock", checked_json(DOMAIN, asdict(replace(lease, expires=1))))


@dataclass(frozen=True)
class Place:
    """Where a store may be."""

    url: str

    def storage(self, term: float = 30.0) -> ObjectStorage:
        """The storage of another process."""
        made = open_storage(self.url)
        assert isinstance(made, ObjectStorage)
        return ObjectStorage(made.objects, term, save=save_quickly)

    def open(self, mode: str = "a", term: float = 30.0, **options: object) -> Database:
        """The store, as another process opens it."""
        return Database(self.storage(term), mode, background=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def memory() -> Place:
    """A place in memory."""
    return Place(f"memory://{uuid4().hex}")


@pytest.fixture(params=["memory", "s3", "gs"])
def place(request: pytest.FixtureRequest) -> Place:
    """A place where nothing is yet, of each kind."""
    name = uuid4().hex
    if request.param == "memory":
        return Place(f"memory://{name}")
    request.getfixturevalue("server")
    return Place(f"{request.param}://{BUCKET}/{name}")


def fill(db: Database) -> dict[str, list[float]]:
    """A collection with sealed rows, imported ones, dead ones and a tail; what it holds."""
    c = db.create_collection("c", 2, "l2", schema={"n": "int"})
    c.upsert(["a", "b", "dead"], [[1, 1], [2, 2], [3, 3]], metadata=[{"n": n} for n in range(3)])
    db.seal()
    c.delete(["dead"])
    c.import_({"id": ["i", "j"], "vector": np.full((2, 2), 4.0), "n": [1, 2]})
    c.upsert(["b", "tail"], [[5, 5], [6, 6]])
    return {"a": [1, 1], "b": [5, 5], "i": [4, 4], "j": [4, 4], "tail": [6, 6]}


def rows(db: Database) -> dict[str, list[float]]:
    """What the collection holds."""
    c = db.collection("c")
    return {str(row.id): row.vector.tolist() for row in c.get(c.ids()) if row is not None}

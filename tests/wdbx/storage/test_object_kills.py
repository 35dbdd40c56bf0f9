"""A real kill of a process that writes to an object store: the next writer finds whatever it had said was written."""

import multiprocessing
from multiprocessing.connection import Connection
from time import monotonic, sleep

import numpy as np

from abi_jax import wdbx
from tests.wdbx.storage.conftest import BUCKET, Place, rows
from tests.wdbx.storage.object_server import Server

START = multiprocessing.get_context("spawn")  # the server's address is in the environment of this process
TERM = 1.0


def write(place: Place, said: Connection) -> None:
    with place.open(term=TERM, retention=0.0) as db:
        c = db.create_collection("c", 2, "l2")
        for n in range(10**6):
            c.upsert([str(n)], np.full((1, 2), n))
            said.send(n)
            if n % 10 == 9:
                db.seal(everything=n % 20 == 19)


def test_a_killed_writer(server: Server) -> None:
    place = Place(f"s3://{BUCKET}/killed")
    here, there = START.Pipe(duplex=False)
    writer = START.Process(target=write, args=(place, there))
    writer.start()
    there.close()
    acknowledged = -1
    try:
        while True:
            acknowledged = here.recv()
            if acknowledged == 45:
                writer.kill()
    except EOFError:
        writer.join()
    until = monotonic() + 100 * TERM
    while True:
        try:
            db = place.open()
            break
        except wdbx.LockedError as error:
            assert "its lease ends in" in str(error) and monotonic() < until
            sleep(0.05)
    with db:
        found = rows(db)
        assert {str(n): [n, n] for n in range(acknowledged + 1)}.items() <= found.items()
        assert len(found) <= acknowledged + 2 and db.verify() == []

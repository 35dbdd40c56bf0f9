"""One engine over many processes: process 0 leads, and the others do what it does, call by call.

Programs over a mesh of several processes run only where all processes start them, in one order. So the leader sends
each call of the seam to its followers before it makes it. Their engines are alike and calls decide everything, which
pages are taken and which chunks are found included, so that nothing has to be sent back.

Followers connect over TCP, to a port and with a key that the leader hands out through the mesh itself; nobody without
that key is listened to. What is said afterwards is neither encrypted nor signed: like the mesh's own collectives, it
needs a network that nobody else can write to.
"""

import os
import pickle
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

import jax
import numpy as np
from jax.experimental import multihost_utils

from abi_jax.errors import InputError
from abi_jax.serve.engine.paged import PagedEngine, PagedPending, PagedWork
from abi_jax.serve.engine.seam import Job, Usage
from abi_jax.sharding.cluster import Cluster

KEY = 32  # bytes
PATIENCE = 10.0  # seconds for who connects to show the key


@dataclass(eq=False)
class LedWork:
    """A job of the leader, by the number that followers know it by."""

    number: int
    work: PagedWork

    @property
    def cached_tokens(self) -> int:
        """See `seam.Work`."""
        return self.work.cached_tokens

    @property
    def adaptation(self) -> str | None:
        """See `seam.Work`."""
        return self.work.adaptation

    @property
    def prompt_logprobs(self) -> list | None:
        """See `seam.Work`."""
        return self.work.prompt_logprobs


class Leader:
    """The engine of process 0, as the scheduler sees it."""

    def __init__(self, engine: PagedEngine, followers: Sequence[Connection]) -> None:
        """Raises `InputError` for users' adaptations, which each process would have to be given."""
        if engine.users is not None:
            raise InputError(f"engine.users = {engine.settings.users} on several processes; expected 0")
        self.engine, self._followers = engine, list(followers)
        self.slots, self.max_length, self.vocab_size = engine.slots, engine.max_length, engine.vocab_size
        self._number = 0

    def check(self, job: Job) -> None:
        """Raises `InputError` for a job that it can never do."""
        self.engine.check(job)

    def begin(self, job: Job) -> LedWork | None:
        """Takes a job on, or returns None while there is no room for it."""
        self._number += 1
        self._tell("begin", self._number, replace(job, grammar=None))
        work = self.engine.begin(job)
        return LedWork(self._number, work) if isinstance(work, PagedWork) else None

    def prefill(self, work: LedWork) -> bool:
        """Reads one more chunk of the prompt; True when all of it is read."""
        self._tell("prefill", work.number)
        return self.engine.prefill(work.work)

    def insert(self, work: LedWork, slot: int) -> None:
        """Puts a job whose prompt is read into a free slot."""
        self._tell("insert", work.number, slot)
        self.engine.insert(work.work, slot)

    def decode(self) -> PagedPending:
        """Makes the next tokens of every slot; followers are told what grammars allow."""
        masks = self.engine.masks()
        self._tell("decode", masks)
        return self.engine.decode_within(masks)

    def release(self, work: LedWork) -> None:
        """Frees the job's slot, if it has one, and its pages."""
        self._tell("release", work.number)
        self.engine.release(work.work)

    def usage(self) -> Usage:
        """How full the cache is."""
        return self.engine.usage()

    def close(self) -> None:
        """Lets the followers go."""
        for follower in self._followers:
            follower.close()

    def _tell(self, *call: object) -> None:
        data = pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
        for follower in self._followers:
            follower.send_bytes(data)


def follow(engine: PagedEngine, leader: Connection) -> None:
    """Does what the leader does, until it is gone."""
    works: dict[int, PagedWork] = {}
    while True:
        try:
            what, *arguments = pickle.loads(leader.recv_bytes())
        except (EOFError, OSError):
            return
        if what == "decode":
            engine.decode_within(*arguments)
        elif what == "begin":
            number, job = arguments
            work = engine.begin(job)
            if isinstance(work, PagedWork):
                works[number] = work
        elif what == "release":
            engine.release(works.pop(arguments[0]))
        else:
            number, *rest = arguments
            getattr(engine, what)(works[number], *rest)


def lead(cluster: Cluster) -> list[Connection]:
    """Waits for the followers, one of each other process. Call it on process 0 while the others call `join`."""
    key = secrets.token_bytes(KEY)
    host = "127.0.0.1" if cluster.is_loopback else socket.gethostbyname(cluster.host)
    found: list[Connection] = []
    with Listener((host, 0), backlog=cluster.num_processes) as listener:
        port = listener.address[1]
        assert isinstance(port, int)
        _share(port.to_bytes(2, "big") + key)
        while len(found) < cluster.num_processes - 1:
            connection = listener.accept()
            try:  # whoever knocks without the key, or says nothing, keeps no follower out
                with _patience(connection):
                    deliver_challenge(connection, key)
                    answer_challenge(connection, key)
                found.append(connection)
            except (AuthenticationError, EOFError, OSError):
                connection.close()
    return found


def join(cluster: Cluster) -> Connection:
    """The connection to the leader, as `lead` hands it out."""
    told = _share(bytes(2 + KEY))
    return Client((socket.gethostbyname(cluster.host), int.from_bytes(told[:2], "big")), authkey=told[2:])


@contextmanager
def _patience(connection: Connection) -> Iterator[None]:
    """Hangs up on who takes longer than `PATIENCE` seconds."""

    def hang_up() -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as duplicate, suppress(OSError):
            duplicate.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(PATIENCE, hang_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def agreed_step(step: int | None) -> int | None:
    """The step that process 0 chose, in every process."""
    if jax.process_count() == 1:
        return step
    told = int.from_bytes(_share((-1 if step is None else step).to_bytes(8, "big", signed=True)), "big", signed=True)
    return None if told < 0 else told


def _share(data: bytes) -> bytes:
    """What process 0 said, in every process."""
    array = np.frombuffer(data, np.uint8)
    if jax.process_count() == 1:
        return data
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(array), np.uint8))

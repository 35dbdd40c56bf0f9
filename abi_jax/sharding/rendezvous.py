"""A roll call before `jax.distributed` starts, so that a missing process has a name.

Process 0 listens on the coordinator's port; every other process connects and says who it is. When all
are there, process 0 says go and leaves the port to JAX. When time runs out, or two processes claim one
id, everyone who is there gets the same message.

One JSON object a line: `{"abi": 1, "process": 2, "processes": 4, "host": "node2"}` is answered, once, by
`{"abi": 1, "go": true}` or `{"abi": 1, "error": "..."}`.
"""

import json
import selectors
import socket
import time
from typing import Any

from abi_jax.errors import InputError
from abi_jax.sharding.cluster import Cluster

_RETRY_S = 0.2
_GRACE_S = 10.0  # process 0 may have started its clock later than the others
_MAX_LINE = 4096


def rendezvous(cluster: Cluster, timeout_s: float) -> None:
    """Returns when all processes of `cluster` are there; `InputError` naming the missing ones otherwise."""
    if cluster.process_id == 0:
        _RollCall(cluster).run(timeout_s)
    else:
        _report(cluster, timeout_s)


class _RollCall:
    """Process 0's side."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.present: dict[int, str] = {0: socket.gethostname()}
        self.connections: dict[int, socket.socket] = {}
        self.buffers: dict[socket.socket, bytes] = {}

    def run(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with _listen(self.cluster) as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            error: str | None = None
            while error is None and len(self.present) < self.cluster.num_processes:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    error = self._missing(timeout_s)
                for key, _ in ready:
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        self.buffers[connection] = b""
                        selector.register(connection, selectors.EVENT_READ)
                    elif isinstance(key.fileobj, socket.socket):
                        error = self._read(key.fileobj, selector) or error
            self._answer({"abi": 1, "go": True} if error is None else {"abi": 1, "error": error})
        if error is not None:
            raise InputError(error)

    def _read(self, connection: socket.socket, selector: selectors.BaseSelector) -> str | None:
        try:
            data = connection.recv(_MAX_LINE)
        except OSError:
            data = b""
        line = self.buffers[connection] = self.buffers[connection] + data
        hello = _decode(line) if line.endswith(b"\n") else None
        if not data or len(line) > _MAX_LINE or (hello is None and line.endswith(b"\n")):
            # It went away, or is no process of ours.
            selector.unregister(connection)
            connection.close()
            del self.buffers[connection]
            for process in [p for p, c in self.connections.items() if c is connection]:
                del self.connections[process], self.present[process]
            return None
        return self._enter(connection, hello) if hello else None

    def _enter(self, connection: socket.socket, hello: dict[str, Any]) -> str | None:
        process, host = hello.get("process"), str(hello.get("host"))
        expected = self.cluster.num_processes
        self.connections[process if isinstance(process, int) else -1] = connection
        if hello.get("processes") != expected:
            return (
                f"process {process} on {host} expects {hello.get('processes')} processes, process 0 expects {expected}"
            )
        if not isinstance(process, int) or not 0 <= process < expected:
            return f"process id {process!r} from {host}; expected 0 to {expected - 1}"
        if process in self.present:
            return f"two processes have id {process}: one on {self.present[process]}, one on {host}"
        self.present[process] = host
        return None

    def _missing(self, timeout_s: float) -> str:
        count = self.cluster.num_processes
        missing = [p for p in range(count) if p not in self.present]
        there = ", ".join(f"{p} ({self.present[p]})" for p in sorted(self.present))
        return (
            f"missing process {_list(missing)} of {count}: not heard of within {timeout_s:g} s "
            f"at {self.cluster.coordinator}; present: {there}"
        )

    def _answer(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for connection in self.buffers:
            try:
                connection.setblocking(True)
                connection.settimeout(1.0)
                connection.sendall(line)
            except OSError:
                pass  # it has left; JAX or its own log will say why
            connection.close()


def _listen(cluster: Cluster) -> socket.socket:
    try:
        if cluster.is_loopback:
            family = socket.AF_INET6 if ":" in cluster.host else socket.AF_INET
            return socket.create_server((cluster.host, cluster.port), family=family, backlog=cluster.num_processes)
        if socket.has_dualstack_ipv6():
            address = ("", cluster.port)
            return socket.create_server(
                address, family=socket.AF_INET6, backlog=cluster.num_processes, dualstack_ipv6=True
            )
        return socket.create_server(("", cluster.port), backlog=cluster.num_processes)
    except OSError as e:
        raise InputError(
            f"process 0 cannot listen on {cluster.coordinator} ({cluster.source}): {e.strerror or e}; "
            "is another job using the port?"
        ) from None


def _report(cluster: Cluster, timeout_s: float) -> None:
    """The other processes' side: connect until process 0 is there, say who this is, wait for the answer."""
    hello = {
        "abi": 1,
        "process": cluster.process_id,
        "processes": cluster.num_processes,
        "host": socket.gethostname(),
    }
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection(
                (cluster.host, cluster.port), timeout=max(0.1, deadline - time.monotonic())
            ) as s:
                s.sendall(json.dumps(hello).encode() + b"\n")
                s.settimeout(timeout_s + _GRACE_S)
                answer = _decode(_read_line(s))
        except OSError as e:
            problem = e.strerror or str(e)
        else:
            if answer and "error" in answer:
                raise InputError(str(answer["error"]))
            if answer and answer.get("go"):
                return
            problem = "the connection closed without an answer"
        if time.monotonic() >= deadline:
            break
        time.sleep(min(_RETRY_S, max(0.0, deadline - time.monotonic())))
    raise InputError(
        f"missing process 0 of {cluster.num_processes}: process {cluster.process_id} could not reach it at "
        f"{cluster.coordinator} ({cluster.source}) within {timeout_s:g} s: {problem}"
    )


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE * 16:
        data = connection.recv(_MAX_LINE)
        if not data:
            break
        line += data
    return line


def _decode(line: bytes) -> dict[str, Any] | None:
    """Returns the message, None for anything that is not one of ours."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.get("abi") == 1 else None


def _list(numbers: list[int]) -> str:
    """Returns `1`, `1 and 3`, or a shortened list."""
    if len(numbers) > 16:
        return f"{', '.join(map(str, numbers[:16]))} and {len(numbers) - 16} more"
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))

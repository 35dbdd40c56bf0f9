"""Several real processes on one host, started, watched and stopped together.

Each process gets the explicit `ABI_` variables that `initialize` reads, so a program that runs on a
cluster runs here unchanged.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from abi_jax.errors import InputError
from abi_jax.sharding.simulate import simulated_devices

_GREETING = re.compile(
    rb"\[Gloo\] Rank \d+ is connected(?: to \d+ peer ranks\. Expected number of connected peer ranks is : \d+)?"
)

HELP = """\
Run a command as several processes of one JAX program, all on this host.

  launch/local -n 2 --devices 4 -- abi train configs/train/demo.yaml
      2 processes x 4 simulated CPU devices: an 8-device mesh over two processes.

  launch/local -n 4 --gpus 2 -- abi train configs/train/personas.yaml
      4 processes, each with 2 of this host's 8 GPUs.

Every process runs the same command and learns who it is from ABI_COORDINATOR, ABI_NUM_PROCESSES and
ABI_PROCESS_ID. Each line of output is prefixed with the number of the process. When one process fails the
others are stopped, and its exit status becomes this command's. Ctrl-C reaches them all.
"""


@dataclass(frozen=True)
class LocalConfig:
    """What to start: `devices` simulated CPU devices a process, or `gpus` real ones when not 0."""

    command: tuple[str, ...]
    processes: int = 2
    devices: int = 1
    gpus: int = 0
    port: int = 0
    prefix: bool = True
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.command:
            raise InputError("no command to run; write it after --, e.g. launch/local -n 2 -- abi train train.yaml")
        if self.processes < 1:
            raise InputError(f"-n {self.processes}; expected at least 1 process")
        if self.devices < 1:
            raise InputError(f"--devices {self.devices}; expected at least 1 device a process")
        if self.gpus < 0:
            raise InputError(f"--gpus {self.gpus}; expected 0 (CPU) or more")
        if not 0 <= self.port < 65536:
            raise InputError(f"--port {self.port}; expected 0 (any free port) to 65535")


def launch(config: LocalConfig, stdout: TextIO | None = None, stderr: TextIO | None = None) -> int:
    """Runs the command in every process; returns 0, or the exit status of the first that failed.

    A process killed by signal n counts as 128 + n. SIGINT, SIGTERM and SIGHUP are passed on while it runs
    in the main thread. Raises `InputError` when the command does not exist.
    """
    port = config.port or free_port()
    environments = [process_environment(config, i, port) for i in range(config.processes)]
    program = shutil.which(config.command[0], path=environments[0]["PATH"])
    if program is None:
        raise InputError(f"command {config.command[0]!r} was not found")
    group = _Group(config, stdout or sys.stdout, stderr or sys.stderr)
    try:
        with group.signals():
            group.start([program, *config.command[1:]], environments)
            return group.wait()
    finally:
        group.kill()


def process_environment(config: LocalConfig, process_id: int, port: int) -> dict[str, str]:
    """Returns the environment of one process."""
    env = dict(os.environ)
    env |= {
        "ABI_COORDINATOR": f"127.0.0.1:{port}",
        "ABI_NUM_PROCESSES": str(config.processes),
        "ABI_PROCESS_ID": str(process_id),
        "PYTHONUNBUFFERED": "1",
        # `abi` and `python` mean the ones that belong to this interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
    }
    if config.gpus:
        visible = [d for d in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
        first = process_id * config.gpus
        mine = visible[first : first + config.gpus] if visible else [str(first + i) for i in range(config.gpus)]
        if len(mine) < config.gpus:
            raise InputError(
                f"{config.processes} processes with --gpus {config.gpus} need {config.processes * config.gpus} GPUs; "
                f"CUDA_VISIBLE_DEVICES shows {len(visible)}"
            )
        return env | {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
    return env | simulated_devices(config.devices, env)


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port: int = s.getsockname()[1]
        return port


class _Group:
    """The running processes; each leads its own process group, so that its children stop with it."""

    def __init__(self, config: LocalConfig, stdout: TextIO, stderr: TextIO) -> None:
        self.config = config
        self.out, self.err = stdout, stderr
        self.processes: list[subprocess.Popen[bytes]] = []
        self.readers: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.asked_to_stop: int | None = None

    def start(self, command: list[str], environments: Sequence[dict[str, str]]) -> None:
        for index, env in enumerate(environments):
            try:
                process = subprocess.Popen(
                    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
                )
            except OSError as e:
                raise InputError(f"cannot run {shlex.join(command)}: {e.strerror or e}") from None
            self.processes.append(process)
            for source, sink in ((process.stdout, self.out), (process.stderr, self.err)):
                assert source is not None
                reader = threading.Thread(target=self._copy, args=(index, source, sink), daemon=True)
                reader.start()
                self.readers.append(reader)

    def wait(self) -> int:
        """Waits for all; the first failure stops the rest."""
        status = 0
        deadline = float("inf")
        running = dict(enumerate(self.processes))
        while running:
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                if code != 0 and status == 0:
                    status = code if code > 0 else 128 - code
                    if running and self.asked_to_stop is None:
                        self._say(f"process {index} failed ({_status(code)}); stopping the others")
                        self.send(signal.SIGTERM)
            if (status or self.asked_to_stop) and deadline == float("inf"):
                deadline = time.monotonic() + self.config.grace_s
            if running and time.monotonic() > deadline:
                self._say(f"process {', '.join(map(str, running))} did not stop in {self.config.grace_s:g} s; killing")
                self.kill()
                deadline = time.monotonic() + self.config.grace_s
            time.sleep(0.02)
        for reader in self.readers:
            reader.join(timeout=self.config.grace_s)
        return status

    def send(self, signum: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                _signal_group(process.pid, signum)

    def kill(self) -> None:
        for process in self.processes:
            _signal_group(process.pid, signal.SIGKILL)  # also what a process that has ended left behind

    def signals(self) -> "_Forward":
        return _Forward(self)

    def _copy(self, index: int, source: BinaryIO, sink: TextIO) -> None:
        head = f"[{index}] " if self.config.prefix else ""
        for line in without_greetings(source):
            with self.lock:
                sink.write(head + line.decode(errors="replace").rstrip("\n") + "\n")
                sink.flush()

    def _say(self, message: str) -> None:
        with self.lock:
            self.err.write(f"launch: {message}\n")
            self.err.flush()


def without_greetings(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Leaves out what the CPU collectives say of every peer on standard output, which belongs to the program.

    Several threads say it at once: a greeting may stand before other text, and its line's end come later.
    """
    owed = 0
    for line in lines:
        rest, greetings = _GREETING.subn(b"", line)
        owed += greetings - (greetings > 0 and not rest.strip())
        if rest.strip():
            yield rest
        elif not greetings and owed:
            owed -= 1
        elif not greetings:
            yield line


class _Forward:
    """Passes the signals that stop a program on to the processes, while entered."""

    def __init__(self, group: _Group) -> None:
        self.group = group
        self.previous: dict[int, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self.previous[signum] = signal.signal(signum, self._pass)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _pass(self, signum: int, _: object) -> None:
        self.group.asked_to_stop = signum
        self.group.send(signum)


def _signal_group(group: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def _status(code: int) -> str:
    return f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `launch/local`."""
    parser = argparse.ArgumentParser(
        "launch/local", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--processes", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument("--devices", type=int, default=1, help="simulated CPU devices a process (default 1)")
    parser.add_argument("--gpus", type=int, default=0, help="real GPUs a process, instead of simulated devices")
    parser.add_argument("--port", type=int, default=0, help="port of process 0 (default: any free one)")
    parser.add_argument("--no-prefix", action="store_true", help="leave output lines as they are")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- then the command and its arguments")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    try:
        config = LocalConfig(tuple(command), args.processes, args.devices, args.gpus, args.port, not args.no_prefix)
        return launch(config)
    except InputError as e:
        print(f"launch/local: {e}", file=sys.stderr)
        return 2

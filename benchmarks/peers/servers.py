"""Servers of the same weights, each a process of its own that can be stopped while another is measured."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from abi_jax.serve.bench.prompts import WORDS
from abi_jax.text import train_tokenizer
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.shapes import SHAPES, write_checkpoint

CONTEXT = 2048
THREADS = 2
Command = list[str | Path]
BATCHING = ("--continuous-batching", "--cb-max-memory-percent", "0.1")


def write_speaking(shape: str, folder: Path, personas: int) -> dict[str, Path]:
    """Writes a shape's weights as every server wants them, with a tokenizer; what is there stays.

    Returns the paths: "hf", "gguf", "abi", and "abi personas", which has a bank of that many, all at work.
    """
    paths = {
        "hf": folder / f"{shape}-text",
        "gguf": folder / f"{shape}-text.gguf",
        "abi": folder / f"{shape}-abi",
        "abi personas": folder / f"{shape}-abi-{personas}",
    }
    if not (paths["hf"] / "tokenizer.json").exists():
        write_checkpoint(shape, paths["hf"])
        size = SHAPES[shape]["vocab_size"]
        tokenizer = train_tokenizer(_texts(size), size)
        tokenizer.save(paths["hf"])
    if not paths["gguf"].exists():
        write_gguf(paths["hf"], paths["gguf"])
    if not paths["abi"].exists():
        _write_abi(paths["hf"], paths["abi"], 0)
    if not paths["abi personas"].exists():
        _write_abi(paths["hf"], paths["abi personas"], personas)
    return paths


def _texts(vocab_size: int) -> list[str]:
    """Texts that give a vocabulary of that size, in which the words of random prompts are one token each."""
    drawn = random.Random(0)
    syllables = [a + b + c for a in "bcdfghjklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    made = ["".join(drawn.choices(syllables, k=drawn.randint(2, 4))) for _ in range(vocab_size)]
    return [" " + " ".join(WORDS) + " "] * 50 + [" " + " ".join(made[i : i + 64]) for i in range(0, len(made), 64)] * 3


def _write_abi(hf: Path, out: Path, personas: int) -> None:
    import jax

    from abi_jax.lineage_seal import seal_files
    from abi_jax.model.bank import add_personas
    from abi_jax.model.config import PersonaShape
    from abi_jax.model.hf import import_hf
    from abi_jax.model.provenance import write_model
    from abi_jax.persona import Persona, Sampling
    from abi_jax.text import Tokenizer

    config, params = import_hf(hf, progress=False)
    if personas:
        shape = PersonaShape(capacity=personas, response_only=True)
        config, params = add_personas(config, params, shape, jax.random.key(0))
    speakers = [Persona(name_of(i), sampling=Sampling(temperature=0.0)) for i in range(personas)]
    sealed = seal_files(hf, [hf / "config.json", hf / "model.safetensors"])
    write_model(out, config, Tokenizer.load(hf), speakers, params, sealed)


def name_of(persona: int) -> str:
    """What a persona of these models is called."""
    return f"p{persona}"


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """One server's process. It runs until it is stopped; `close` ends it."""

    def __init__(self, command: Sequence[str | Path], port: int, log: Path, model: str, ready: str = "/health") -> None:
        """ready: a path that answers 200 once the model can speak."""
        self.url, self.model = f"http://127.0.0.1:{port}", model
        self._log = log
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(THREADS),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "0",
        }
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdout=file, stderr=file, env=environment, start_new_session=True
            )
        self._wait(ready)

    def stop(self) -> None:
        """Takes the processor from it."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Gives it back."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """What it has used, all threads."""
        return cpu_of(self._process.pid)

    def close(self) -> None:
        """Ends it."""
        self.go_on()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self, ready: str) -> None:
        end = time.monotonic() + 300
        while True:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(self.url + ready, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.2)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ours(model: Path, folder: Path, slots: int, *more: str) -> Server:
    """`abi serve`."""
    port = free_port()
    command: Command = [
        sys.executable,
        "-m",
        "abi_jax.cli",
        "serve",
        model,
        "--port",
        str(port),
        "--slots",
        str(slots),
    ]
    sizes = ["--set", f"engine.max_length={CONTEXT}", *more]
    return Server([*command, *sizes], port, folder / f"{model.name}-{slots}.log", "base", "/ready")


def transformers(hf: Path, folder: Path, *more: str) -> Server:
    """`transformers serve`, which reads the model before its first answer."""
    port = free_port()
    command: Command = [
        Path(sys.executable).parent / "transformers",
        "serve",
        hf,
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    name = "transformers-batching" if more else "transformers"
    return Server([*command, "--device", "cpu", "--host", "127.0.0.1", *more], port, folder / f"{name}.log", str(hf))


def llama_server(binary: Path, gguf: Path, folder: Path, slots: int) -> Server:
    """llama.cpp's own server: f32 cache, a slot for each request at a time, batched continuously."""
    port = free_port()
    command: Command = [binary, "-m", gguf, "--port", str(port), "-t", str(THREADS), "-np", str(slots)]
    sizes = ["-c", str(slots * CONTEXT), "--cache-type-k", "f32", "--cache-type-v", "f32", "-fa", "off", "--no-webui"]
    return Server([*command, *sizes], port, folder / "llama-server.log", "model")


def llama_cpp_python(gguf: Path, folder: Path) -> Server:
    """llama-cpp-python's server, which answers one request at a time."""
    port = free_port()
    command: Command = [sys.executable, "-m", "llama_cpp.server", "--model", gguf, "--port", str(port)]
    sizes = ["--n_ctx", str(CONTEXT), "--n_threads", str(THREADS), "--interrupt_requests", "false"]
    kinds = ["--type_k", "0", "--type_v", "0"]  # f32
    return Server([*command, *sizes, *kinds], port, folder / "llama_cpp.log", str(gguf), "/v1/models")


def same_tokens(servers: dict[str, Server], prompt: str) -> dict[str, int]:
    """How many tokens each takes a prompt for."""
    counts = {}
    for name, server in servers.items():
        body = {"model": server.model, "prompt": prompt, "max_tokens": 2, "temperature": 0.0}
        asked = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            counts[name] = json.loads(answer.read())["usage"]["prompt_tokens"]
    return counts

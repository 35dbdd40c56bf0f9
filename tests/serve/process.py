"""`abi serve` as a process of its own, with a model that was never trained."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.provenance import write_model
from abi_jax.model.weight import describe, initialize
from tests.serve.http.serving import tokenizer, voices

SIZES = ["engine.slots=2", "engine.page_size=16", "engine.chunk=16", "engine.max_length=128"]


def write_tiny(path: Path) -> Path:
    """A model directory with two personas; returns it."""
    config = ModelConfig(400, 32, 2, 2, 2, 16, 64, max_length=256, persona=PersonaShape(capacity=4))
    params = initialize(describe(lambda: Decoder(config))[1], jax.random.key(0))
    write_model(path, config, tokenizer(), voices().personas, params, {})
    return path


@contextlib.contextmanager
def served(
    model: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> Iterator[tuple[str, subprocess.Popen[str], list[dict[str, Any]]]]:
    """Runs the command until the end of the block; where it listens, its process, and what it logs."""
    abi = [*launcher, sys.executable, "-m", "abi_jax.cli"]
    command = [*abi, "serve", str(model), "--port", "0", *arguments, "--json"]
    sets = [part for each in SIZES for part in ("--set", each)]
    process = subprocess.Popen([*command, *sets], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: list[dict[str, Any]] = []
    ready = threading.Event()
    where = ""

    def follow() -> None:
        nonlocal where
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(json.loads(line) if line.startswith("{") else {"message": line})
            if lines[-1]["message"] == "serving":
                where = lines[-1]["url"]
                ready.set()
        ready.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        assert ready.wait(300) and where, lines
        yield where, process, lines
    finally:
        process.kill()
        process.wait()
        thread.join()
        if process.stdout is not None:
            process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()

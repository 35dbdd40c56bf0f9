"""Our side of the CPU benchmarks, with the same calls and the same timing rules as the peers.

Weights come from the same Hugging Face folder, through our own import. Dimensions: B sequences, T tokens,
P personas.
"""

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from abi_jax.model.bank import add_personas
from abi_jax.model.config import PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.generate import Generator, Prompt
from abi_jax.model.hf import import_hf
from abi_jax.model.weight import describe
from abi_jax.train.step import Objective, TrainState, initial_state, make_step

INPUT_ROLE = 4


class AbiJaxPeer:
    """One loaded model; with `personas` > 0, a bank of that many whose terms are all at work.

    In training, personas are mixed on every token and trained together with the backbone, so that a step
    with them does all that a step without them does.
    """

    def __init__(self, folder: str | Path, personas: int = 0) -> None:
        self.config, self.params = import_hf(folder, progress=False)
        self.personas = personas
        if personas:
            shape = PersonaShape(capacity=personas)
            self.config, self.params = add_personas(self.config, self.params, shape, jax.random.key(0))
        self._generator = Generator(self.config, self.params)
        self._training: tuple[Any, TrainState] | None = None

    def _prompts(self, tokens: np.ndarray) -> list[Prompt]:
        rows = np.eye(self.personas, dtype=np.float32) if self.personas else None
        roles = np.full(tokens.shape[1], INPUT_ROLE)
        return [Prompt(row, roles, None if rows is None else rows[i % self.personas]) for i, row in enumerate(tokens)]

    def prefill(self, tokens: np.ndarray) -> float:
        """Returns the seconds to read `tokens` [B, T] into a cache and make the first token."""
        prompts = self._prompts(tokens)
        start = perf_counter()
        state = self._generator.start(prompts, room=1)
        _, first = self._generator.step(state)
        first.block_until_ready()
        return perf_counter() - start

    def decode(self, tokens: np.ndarray, new_tokens: int) -> tuple[float, np.ndarray]:
        """Decodes greedily after `tokens` [B, T]: seconds a step, the prompt apart, and ids [B, new_tokens]."""
        times, ids = [], []
        stream = self._generator.stream(self._prompts(tokens), new_tokens)
        for row in stream:
            times.append(perf_counter())
            ids.append(row)
        return (times[-1] - times[0]) / (len(times) - 1), np.stack(ids, axis=1)

    def dispatch(self, tokens: np.ndarray, steps: int = 20) -> float:
        """Returns the median seconds until a decode step has been handed to the device."""
        state = self._generator.start(self._prompts(tokens), room=steps)
        seconds = []
        for _ in range(steps):
            start = perf_counter()
            state, out = self._generator.step(state)
            seconds.append(perf_counter() - start)
            out.block_until_ready()
        return float(np.median(seconds))

    def train_step(self, tokens: np.ndarray) -> float:
        """Returns the seconds of forward, backward and AdamW update on rows [B, T]."""
        if self._training is None:
            graphdef, _ = describe(partial(Decoder, self.config))
            optimizer = optax.adamw(1e-5, weight_decay=0.0)
            step = make_step(Objective(graphdef, self.personas > 0, 1), optimizer)
            # the step donates its state: the generator keeps its own copy
            copied = jax.tree.map(jnp.copy, self.params)
            self._training = step, initial_state(copied, optimizer)
        step, state = self._training
        batch = _batch(tokens, self.personas)
        start = perf_counter()
        state, metrics = step(state, None, batch)
        jax.block_until_ready((state, metrics))
        seconds = perf_counter() - start
        self._training = step, state
        return seconds


def _batch(tokens: np.ndarray, personas: int) -> dict[str, Any]:
    B, T = tokens.shape
    tokens = tokens.astype(np.int32)
    weights = np.ones((B, T), np.float32)
    weights[:, -1] = 0
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        "segments": np.ones((B, T), np.int32),
        "roles": np.full((B, T), INPUT_ROLE + 1, np.int32),
        "weights": weights,
        "group": np.zeros((B, T), np.int32),
    }
    if personas:
        mixture = np.eye(personas, dtype=np.float32)[np.arange(B) % personas]
        batch["mixture"] = np.repeat(mixture[:, None], T, axis=1)
    return batch

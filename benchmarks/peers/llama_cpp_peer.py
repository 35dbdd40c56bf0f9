"""The llama.cpp side of the CPU benchmarks.

Dimensions: B sequences, T prompt tokens, V vocabulary. `LlamaCppPeer` decodes a model through llama.cpp's C API, all
sequences in one batch. The high-level `Llama` class is not used: it runs one sequence at a
time and copies logits through Python, which would measure the binding.
"""

import ctypes
from pathlib import Path
from time import perf_counter

import llama_cpp
import numpy as np


class LlamaCppPeer:
    """One loaded model; a context is made for the B and length at hand, outside the timing.

    The cache is float32. `kv_unified` puts the sequences in one shared buffer, where each
    attends over the cells of all behind a mask. `flash_attn`, which llama.cpp itself would
    choose, is off: it casts a float32 cache to float16 on every step, and logits then differ
    from float64 by 5e-2 rather than 1e-4.
    """

    def __init__(self, path: str | Path, threads: int = 2, kv_unified: bool = False, flash_attn: bool = False) -> None:
        _silence()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.threads, self.kv_unified, self.flash_attn = threads, kv_unified, flash_attn
        self._context: llama_cpp.llama_context_p | None = None
        self._size = (0, 0)

    def prefill(self, tokens: np.ndarray) -> float:
        """Returns the seconds to read `tokens` [B, T] into the cache, with logits of the last one."""
        tokens = np.asarray(tokens, np.int32)
        self._reset(tokens.shape[0], tokens.shape[1])
        start = perf_counter()
        self._step(tokens, 0)
        return perf_counter() - start

    def decode(self, tokens: np.ndarray, new_tokens: int) -> tuple[float, np.ndarray]:
        """Decodes greedily after `tokens` [B, T].

        Returns the seconds per step, argmax included and prompt not, and the ids [B, new_tokens].
        """
        if new_tokens < 2:
            raise ValueError(f"new_tokens is {new_tokens}: a step time needs at least 2")
        tokens = np.asarray(tokens, np.int32)
        sequences, length = tokens.shape
        self._reset(sequences, length + new_tokens)
        ids = np.empty((sequences, new_tokens), np.int32)
        ids[:, 0] = self._step(tokens, 0)
        start = perf_counter()
        for i in range(1, new_tokens):
            ids[:, i] = self._step(ids[:, i - 1 : i], length + i - 1)
        return (perf_counter() - start) / (new_tokens - 1), ids

    def close(self) -> None:
        """Frees the context and the model."""
        if self._context:
            llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def _reset(self, sequences: int, length: int) -> None:
        """Empties the cache, which afterwards holds `length` tokens of each sequence."""
        if self._context and self._size == (sequences, length):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
            return
        if self._context:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_batch = sequences * length
        params.n_ctx = sequences * -(-length // 256) * 256  # llama.cpp pads each sequence to 256
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.kv_unified = self.kv_unified
        params.flash_attn_type = int(self.flash_attn)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {sequences} sequences of {length} tokens")
        self._size = (sequences, length)

    def _step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Runs `tokens` [B, T] from `position` on; returns the greedy next ids [B]."""
        sequences, length = tokens.shape
        batch = llama_cpp.llama_batch_init(sequences * length, 0, 1)
        try:
            batch.n_tokens = sequences * length
            for i, token in enumerate(tokens.reshape(-1).tolist()):
                sequence, offset = divmod(i, length)
                batch.token[i] = token
                batch.pos[i] = position + offset
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = offset == length - 1
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        # one row per token that asked for logits, in batch order: [B, V]
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (sequences * self.vocab,))
        return logits.reshape(sequences, self.vocab).argmax(axis=1)


@llama_cpp.llama_log_callback
def _drop(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """A log callback that prints nothing."""


def _silence() -> None:
    """Stops llama.cpp from logging every load to stderr."""
    llama_cpp.llama_log_set(_drop, ctypes.c_void_p(0))

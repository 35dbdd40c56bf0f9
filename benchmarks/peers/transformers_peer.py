"""The Hugging Face transformers side of the CPU benchmarks.

Dimensions: B sequences, T prompt tokens. Everything goes through the calls a user of the
library makes: `model(...)` for the prompt, `model.generate` for decoding, and a forward,
backward and optimizer step for training. All times are wall-clock seconds of one call; the
caller warms up and repeats.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, CompileConfig


class TransformersPeer:
    """One loaded model.

    `attn` is an attention implementation of transformers ("sdpa", "eager"). With `compile`,
    prompt and training passes run under `torch.compile` and decoding uses the library's own
    compiled step, which requires the static cache.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: str = "float32",
        attn: str = "sdpa",
        compile: bool = False,
        threads: int = 2,
    ) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attn, local_files_only=True
        ).eval()
        self.compile = compile
        # shapes are fixed within a benchmark, so specialising on them only helps the peer
        self._forward = torch.compile(self.model, dynamic=False) if compile else self.model
        self._optimizer: torch.optim.Optimizer | None = None

    def prefill(self, tokens: np.ndarray) -> float:
        """Returns the seconds to read `tokens` [B, T] into a cache, with logits of the last one."""
        ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
        self.model.eval()
        with torch.inference_mode():
            start = perf_counter()
            self._forward(input_ids=ids, use_cache=True, logits_to_keep=1)
            return perf_counter() - start

    def decode(
        self, tokens: np.ndarray, new_tokens: int, cache_implementation: str | None = None
    ) -> tuple[float, np.ndarray]:
        """Decodes greedily after `tokens` [B, T].

        Returns the seconds per step without the prompt and the ids [B, new_tokens]. The first
        new token comes out of the prompt pass, so the step time is the time for `new_tokens`
        tokens less the time for one, over `new_tokens - 1`. `cache_implementation` is None for
        the growing `DynamicCache` that `generate` defaults to, or "static".
        """
        if new_tokens < 2:
            raise ValueError(f"new_tokens is {new_tokens}: a step time needs at least 2")
        ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
        self.model.eval()
        # the long call goes first: it sizes the static cache, which the short call then reuses
        seconds, output = self._generate(ids, new_tokens, cache_implementation)
        prompt_seconds, _ = self._generate(ids, 1, cache_implementation)
        return (seconds - prompt_seconds) / (new_tokens - 1), output[:, ids.shape[1] :].numpy()

    def train_step(self, tokens: np.ndarray) -> float:
        """Returns the seconds of one step on `tokens` [B, T]: loss, backward, AdamW update.

        The model is changed. The loss is the mean next-token cross-entropy over T - 1 positions.
        """
        ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
        self.model.train()
        if self._optimizer is None:
            # fused is what `transformers.Trainer` uses by default, and the fastest on CPU
            self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        start = perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        self._forward(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        self._optimizer.step()
        return perf_counter() - start

    def _generate(self, ids: torch.Tensor, new_tokens: int, cache: str | None) -> tuple[float, torch.Tensor]:
        """Returns the seconds and the ids, prompt included, of one greedy `generate`."""
        options: dict[str, Any] = {"cache_implementation": cache} if cache else {}
        if self.compile:
            config: Any = CompileConfig(fullgraph=True, mode="default", dynamic=False)
            # generate compiles on accelerators only, unless this field says otherwise
            config._compile_all_devices = True
            options = {"cache_implementation": "static", "compile_config": config}
        start = perf_counter()
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            **options,
        )
        return perf_counter() - start, output

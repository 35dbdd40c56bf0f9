"""The engine without HTTP and scheduling, in a process that a benchmark can stop: steps, timed on request.

    python -m benchmarks.peers.engine_alone MODEL SLOTS PROMPT STEPS

Reads lines from standard input; for each, fills all slots with random prompts of PROMPT tokens, decodes, and prints a
JSON list of the milliseconds of STEPS steps, each dispatched before the last is read.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from abi_jax.model.generate import Prompt
from abi_jax.sharding.compile_cache import compile_cache
from abi_jax.text.roles import Role


def main() -> None:
    """Serves standard input until it ends."""
    os.environ.update(compile_cache(os.environ))
    from abi_jax.model.directory import ModelDirectory
    from abi_jax.serve.build import make_engine
    from abi_jax.serve.config import ServeConfig
    from abi_jax.serve.engine.config import EngineConfig
    from abi_jax.serve.engine.paged import PagedWork
    from abi_jax.serve.engine.seam import Job
    from abi_jax.serve.voices import Voices

    path, slots, length, steps = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    config = ServeConfig(str(path), engine=EngineConfig(slots=slots, max_length=2048))
    directory = ModelDirectory.open(path)
    engine, _ = make_engine(config, directory, Voices.of(directory), None)
    rng = np.random.default_rng(0)
    print("ready", flush=True)
    for _ in sys.stdin:
        works = []
        for slot in range(slots):
            tokens = rng.integers(0, engine.vocab_size, length).astype(np.int32)
            prompt = Prompt(tokens, np.full(length, Role.INPUT, np.int32))
            work = engine.begin(Job(prompt, steps + 2, ignore_eos=True))
            assert isinstance(work, PagedWork)
            while not engine.prefill(work):
                pass
            engine.insert(work, slot)
            works.append(work)
        times = []
        pending = engine.decode()
        pending.read()
        pending = engine.decode()
        for _ in range(steps):
            start = perf_counter()
            following = engine.decode()
            pending.read()
            pending = following
            times.append(1e3 * (perf_counter() - start))
        pending.read()
        for work in works:
            engine.release(work)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()

"""`abi serve` with an engine that fails at its first step, for tests: `python -m tests.serve.failing STUCK FILE`.

STUCK: "stuck" where a thread besides never ends, as one that waits for a device that is gone.
"""

import os
import sys
import threading
from typing import Any

from abi_jax import cli
from abi_jax.serve import build
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http import server
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import STORE
from tests.serve.http.serving import voices


def end_when_answered() -> None:
    """Lets the process be ended early, but not while it says what it has to say, however slow it is."""
    answered, run, end = threading.Event(), server.run, os._exit

    def told(*arguments: Any, **settings: Any) -> int:
        try:
            return run(*arguments, **settings)
        finally:
            answered.set()

    def after_it(status: int) -> None:
        answered.wait()
        end(status)

    server.LAST, server.run, os._exit = 0.5, told, after_it  # type: ignore[assignment]


def make_service(*_: Any) -> Service:
    """A service whose engine fails."""
    if sys.argv[1] == "stuck":
        STORE.submit("", threading.Event().wait)
    return Service.of(FakeEngine(vocab_size=400, broken="the device is gone"), voices())


if __name__ == "__main__":
    build.make_service = make_service  # type: ignore[assignment]
    if sys.argv[1] == "stuck":
        end_when_answered()
    sys.exit(cli.main(["serve", sys.argv[2], "--port", "0", "--json"]))

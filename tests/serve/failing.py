"""`abi serve` with an engine that fails at its first step, for tests: `python -m tests.serve.failing STUCK FILE`.

STUCK: "stuck" where a thread besides never ends, as one that waits for a device that is gone.
"""

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


def make_service(*_: Any) -> Service:
    """A service whose engine fails."""
    if sys.argv[1] == "stuck":
        server.LAST = 5.0
        STORE.submit("", threading.Event().wait)
    return Service.of(FakeEngine(vocab_size=400, broken="the device is gone"), voices())


if __name__ == "__main__":
    build.make_service = make_service  # type: ignore[assignment]
    sys.exit(cli.main(["serve", sys.argv[2], "--port", "0", "--json"]))

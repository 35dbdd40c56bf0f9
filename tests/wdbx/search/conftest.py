"""What tests of search share."""

from collections.abc import Callable, Iterator

import jax
import pytest


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """Counts the programs that JAX compiled, or loaded compiled."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(seen)
    jax.monitoring.unregister_event_duration_listener(listen)

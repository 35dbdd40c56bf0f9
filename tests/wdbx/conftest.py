"""Nothing goes on behind the back of a test of the store, unless it asks for that."""

import threading
from collections.abc import Iterator

import pytest

from abi_jax.wdbx import background


@pytest.fixture(autouse=True, scope="module")
def _never_idle() -> Iterator[None]:
    """Nothing is sealed or indexed because nobody has written for a while: a busy machine may halt a test as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "IDLE_SECONDS", 3600.0)
        yield


@pytest.fixture(autouse=True)
def _finished() -> Iterator[None]:
    """What searches began to make in the background is made, or given up, before the next test begins."""
    yield
    for each in threading.enumerate():
        if each.name == "wdbx-index":
            each.join(100)
            assert not each.is_alive(), f"{each.name} does not end"

"""A server that several tests of this folder ask."""

from collections.abc import Iterator

import pytest

from abi_jax.serve.engine.fake import FakeEngine
from tests.serve.http.serving import Running, script, serving


@pytest.fixture(scope="package")
def plain() -> Iterator[Running]:
    """A server whose engine says tokens that follow from the prompt and the seed."""
    with serving(FakeEngine(vocab_size=400)) as running:
        yield running


@pytest.fixture(scope="package")
def hello() -> Iterator[Running]:
    """A server whose engine says "hello, world! She said: hello" and ends."""
    with serving(FakeEngine(vocab_size=400, script=script("hello, world! She said: hello"))) as running:
        yield running

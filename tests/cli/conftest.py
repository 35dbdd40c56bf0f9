"""The command line in this process: what it prints, what it returns, what it leaves behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abi_jax.cli import main
from tests.train.tiny import trained

__all__ = ["Abi", "Result", "trained"]


@dataclass(frozen=True)
class Result:
    """One run of `abi`."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return dict(json.loads(lines[0]))


Abi = Callable[..., Result]


@pytest.fixture
def abi(capfd: pytest.CaptureFixture[str]) -> Abi:
    """Returns a function that runs `abi` with some arguments."""

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Result(status, *capfd.readouterr())

    return run

"""What a run says, and that it does not depend on anybody listening."""

import errno
import io
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from abi_jax.train.config import EvaluationConfig
from abi_jax.train.loop import train
from tests.train.tiny import config


class Gone(io.StringIO):
    """Standard error that goes away: a terminal that is closed, or a pipe that nobody reads."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, _: str) -> NoReturn:
        raise OSError(errno.EIO if self._terminal else errno.EPIPE, "gone")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_goes_on_when_nobody_reads_what_it_says(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone(terminal))
    metrics = train(config(out=tmp_path / "run", steps=3, evaluation=EvaluationConfig(every=2, batches=1)))
    assert metrics["step"] == 3 and len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 4

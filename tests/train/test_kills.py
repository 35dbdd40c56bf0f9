"""What SIGKILL leaves behind: whole steps alone, from which the run goes on bit for bit (see benchmarks/kills.py)."""

from pathlib import Path

import pytest

from benchmarks.kills import measure


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    """At a random moment, while a checkpoint is written, and between writing and linking one."""
    result = measure(tmp_path, kills=3, processes=1, seed=1, steps=100)
    assert result["kills"] == 3 and result["losses_identical"] and result["state_identical"]

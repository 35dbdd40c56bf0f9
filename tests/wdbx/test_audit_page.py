"""The page docs/wdbx-audit.md, run from top to bottom."""

import re
from pathlib import Path
from typing import Any

import pytest

from abi_jax.lineage import Chain
from tests.test_lineage import link

PAGE = Path(__file__).parents[2] / "docs" / "wdbx-audit.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Chain(tmp_path / "runs" / "personas" / "lineage" / "chain.jsonl").append(link(100))
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks[:2]:
        exec(block, names)
    assert capsys.readouterr().out == ""
    for block in blocks[2:]:
        exec(block, names)
    assert "'step': 100" in capsys.readouterr().out

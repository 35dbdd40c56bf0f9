"""An engine that fails, in a process of its own: answers end with the reason, and the process with status 1."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serve.http.serving import ASKED, PATIENCE


@pytest.mark.parametrize("stuck", ["", "stuck"])
def test_the_process_ends_with_status_1(tmp_path: Path, stuck: str) -> None:
    """Also where one of its threads never does; then nothing more is said."""
    (tmp_path / "serve.yaml").write_text("model: somewhere\n")
    command = [sys.executable, "-m", "tests.serve.failing", stuck, str(tmp_path / "serve.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            told = next(line for line in map(json.loads, process.stderr) if line["message"] == "serving")
            body = {"model": "base", "messages": ASKED, "stream": True}
            answer = httpx.post(f"{told['url']}/chat/completions", json=body, timeout=PATIENCE)
            assert "the device is gone" in answer.text and answer.text.endswith("data: [DONE]\n\n")
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 1
    if not stuck:
        ended = json.loads(out)
        assert ended["ok"] is False and ended["error"] == "the engine failed: RuntimeError: the device is gone"

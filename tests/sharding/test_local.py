"""The launcher of several processes on one host."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abi_jax.errors import InputError
from abi_jax.sharding.local import LocalConfig, launch, main, process_environment, without_greetings

LAUNCHER = Path(__file__).resolve().parents[2] / "launch" / "local"


def run(script: str, processes: int = 2, **options: float) -> tuple[int, list[str], str]:
    out, err = io.StringIO(), io.StringIO()
    config = LocalConfig(("sh", "-c", script), processes, **options)  # type: ignore[arg-type]
    status = launch(config, out, err)
    return status, sorted(out.getvalue().splitlines()), err.getvalue()


def test_each_process_learns_who_it_is_and_lines_are_prefixed() -> None:
    status, lines, _ = run("echo $ABI_PROCESS_ID of $ABI_NUM_PROCESSES; echo second", 3)
    assert status == 0
    assert lines == sorted(f"[{i}] {text}" for i in range(3) for text in (f"{i} of 3", "second"))


def test_output_without_prefix_and_without_greetings() -> None:
    assert run("echo '[Gloo] Rank 0 is connected'; echo hello", prefix=False)[1] == ["hello", "hello"]


def test_one_failure_fails_all() -> None:
    start = time.monotonic()
    status, _, err = run("if [ $ABI_PROCESS_ID = 1 ]; then exit 7; fi; sleep 300", grace_s=60.0)
    assert status == 7
    assert time.monotonic() - start < 200
    assert "process 1 failed (exit status 7); stopping the others" in err and "did not stop" not in err


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    start, deaf = time.monotonic(), tmp_path / "deaf"
    fails = f"until [ -e {deaf} ]; do sleep 0.02; done; exit 3"
    script = f"if [ $ABI_PROCESS_ID = 1 ]; then {fails}; fi; trap '' TERM; touch {deaf}; sleep 300; sleep 300"
    status, _, err = run(script, grace_s=0.5)
    assert status == 3
    assert time.monotonic() - start < 200
    assert "process 0 did not stop in 0.5 s; killing" in err


def test_killed_by_a_signal() -> None:
    assert run("kill -9 $$", 1)[0] == 128 + 9


def test_children_of_a_process_stop_with_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    run(f"sleep 300 > /dev/null 2>&1 & echo $! > {marker}; exit 1", 1)
    pid = int(marker.read_text())
    deadline = time.monotonic() + 60
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended before, or while, its status was read
        return False


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_processes(signum: int, status: int) -> None:
    command = [sys.executable, str(LAUNCHER), "-n", "2", "--", "sh", "-c", "echo ready; exec sleep 300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
        process.send_signal(signum)
        assert process.wait(timeout=100) == status


def test_environment_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    env = process_environment(LocalConfig(("x",), devices=4), 1, 99)
    flags = env["XLA_FLAGS"].split()
    assert (flags[0], flags[-1]) == ("--a=1", "--xla_force_host_platform_device_count=4")
    assert (env["JAX_PLATFORMS"], env["ABI_COORDINATOR"], env["ABI_PROCESS_ID"]) == ("cpu", "127.0.0.1:99", "1")
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LocalConfig(("x",), processes=2, gpus=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert process_environment(config, 1, 99)["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert process_environment(config, 1, 99)["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with pytest.raises(InputError, match="need 4 GPUs; CUDA_VISIBLE_DEVICES shows 3"):
        process_environment(config, 1, 99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command to run"),
        (["-n", "0", "--", "true"], "-n 0; expected at least 1"),
        (["--devices", "0", "--", "true"], "--devices 0"),
        (["--gpus", "-1", "--", "true"], "--gpus -1"),
        (["--port", "70000", "--", "true"], "--port 70000"),
        (["--", "no-such-command"], "'no-such-command' was not found"),
    ],
)
def test_bad_input_exits_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.smoke
def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "launch/local -n 2 --devices 4 -- abi train" in text
    assert "ABI_COORDINATOR" in text


def test_greetings_of_the_collectives_are_left_out_however_they_are_mixed_up() -> None:
    hello = b"[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
    said = [
        hello + b"\n",
        hello + hello + b"\n",  # two at once
        b"\n",
        hello + b'{"a": 1}\n',  # and one into the program's own line
        b"\n",
        b"\n",  # the program's
        b"last",
    ]
    assert list(without_greetings(said)) == [b'{"a": 1}\n', b"\n", b"last"]

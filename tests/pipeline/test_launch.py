"""The launcher against real processes: no rank outlives its peers or parent; all can stop at a
checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LAUNCH = (
    "import sys; from pathlib import Path; from pipeline.launch import start_ranks;"
    "words = ['--config', 'run/config.yaml'];"
    "sys.exit(start_ranks('{module}', words, Path('run'), 3, {stops_at_checkpoint}))"
)
STARTING = "starting 3 ranks of rank_of_test, run_dir run"
# what a training rank does
HOLDS = (
    "from data_tools.ground.exit_codes import STOPPED\n"
    "from pipeline.signals import hold_stop_signals, stop_was_asked\n"
    "hold_stop_signals()\nopen(f'up{rank}', 'w')\n"
)


@pytest.fixture
def module(tmp_path: Path):
    """Writes a module whose ranks do `body`; returns the command that launches three of them."""

    def write(body: str, stops_at_checkpoint: bool = False) -> list[str]:
        (tmp_path / "rank_of_test.py").write_text(
            "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + body
        )
        told = LAUNCH.format(module="rank_of_test", stops_at_checkpoint=stops_at_checkpoint)
        return [sys.executable, "-c", told]

    return write


def _environment(tmp_path: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}


def test_all_ranks_get_the_variables_of_one_group(module, tmp_path: Path) -> None:
    command = module(
        "names = 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT'.split()\n"
        "line = ' '.join(os.environ[n] for n in names) + ' ' + ' '.join(sys.argv[1:])\n"
        "open(f'out{rank}', 'w').write(line)"
    )
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=_environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stderr.splitlines() == [STARTING]
    lines = [(tmp_path / f"out{rank}").read_text().split() for rank in range(3)]
    assert [line[:3] for line in lines] == [[str(rank), str(rank), "3"] for rank in range(3)]
    assert len({tuple(line[3:5]) for line in lines}) == 1
    assert all(line[5:] == ["--config", "run/config.yaml"] for line in lines)


def test_a_failing_rank_ends_the_others_and_gives_its_exit_code(module, tmp_path: Path) -> None:
    command = module("if rank == 1: sys.exit(7)\ntime.sleep(600)")
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 7
    assert "rank 1 of 3 ended with code 7" in ended.stderr


def test_a_killed_rank_is_named_with_its_signal(module, tmp_path: Path) -> None:
    command = module("if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)")
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 128 + signal.SIGKILL
    assert "rank 2 of 3 was killed by signal 9" in ended.stderr


def _children_when_up(process: subprocess.Popen, tmp_path: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("up*"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


def test_signals_are_passed_on(module, tmp_path: Path) -> None:
    command = module(
        "def on(number, _): open(f'got{rank}', 'w').write(str(number)); sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, on)\nopen(f'up{rank}', 'w')\ntime.sleep(600)"
    )
    process = subprocess.Popen(command, cwd=tmp_path, env=_environment(tmp_path))
    _children_when_up(process, tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    got = [(tmp_path / f"got{rank}").read_text() for rank in range(3)]
    assert got == [str(int(signal.SIGUSR1))] * 3


def test_ranks_die_with_a_launcher_that_is_killed(module, tmp_path: Path) -> None:
    command = module("open(f'up{rank}', 'w')\ntime.sleep(600)")
    process = subprocess.Popen(command, cwd=tmp_path, env=_environment(tmp_path))
    ranks = _children_when_up(process, tmp_path)
    assert len(ranks) == 3
    process.kill()
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert [rank for rank in alive if rank.status() != psutil.STATUS_ZOMBIE] == []


def _started(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts it on a terminal; all three ranks are up."""
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=_environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _children_when_up(process, tmp_path)
    return process


STOPS = HOLDS + (
    "while not stop_was_asked(): time.sleep(0.01)\ntime.sleep(rank / 4)\nsys.exit(STOPPED)"
)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_ranks_that_were_told_to_stop_end_one_by_one_with_75(
    number: signal.Signals, module, tmp_path: Path
) -> None:
    process = _started(module(STOPS, stops_at_checkpoint=True), tmp_path)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75, told
    assert f"{number.name}: stopping after a checkpoint" in told
    assert "checkpoint saved; go on with: python -m rank_of_test run_dir=run" in told
    assert "error" not in told and "stopping the others" not in told
    assert ("Ctrl-C again ends the ranks at once" in told) == (number == signal.SIGINT)


def test_ctrl_c_goes_to_the_whole_terminal_and_the_second_one_kills(module, tmp_path: Path) -> None:
    process = _started(module(HOLDS + "time.sleep(600)", stops_at_checkpoint=True), tmp_path)
    ranks = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None and all(rank.is_running() for rank in ranks)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert "Traceback" not in told and "KeyboardInterrupt" not in told
    assert not any(rank.is_running() for rank in ranks)


def test_ctrl_c_ends_ranks_that_save_nothing_without_tracebacks(module, tmp_path: Path) -> None:
    process = _started(module("open(f'up{rank}', 'w')\ntime.sleep(600)"), tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert told.splitlines() == [
        STARTING,
        "SIGINT: stopping; Ctrl-C again ends the ranks at once",
    ]


def test_a_signal_during_the_imports_of_a_rank_is_not_lost(module, tmp_path: Path) -> None:
    body = (
        "open(f'up{rank}', 'w')\n"  # hold_stop_signals comes later than the signal
        "while not os.path.exists('sent'): time.sleep(0.01)\n" + STOPS
    )
    process = _started(module(body, stops_at_checkpoint=True), tmp_path)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    (tmp_path / "sent").touch()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75, told


@pytest.mark.slow
def test_ranks_that_hold_sigterm_back_are_ended_too_when_one_fails(module, tmp_path: Path) -> None:
    body = HOLDS + "while not os.path.exists('fail'): time.sleep(0.01)\n"
    body += "if rank == 1: sys.exit(7)\ntime.sleep(600)"
    process = _started(module(body, stops_at_checkpoint=True), tmp_path)
    ranks = psutil.Process(process.pid).children()
    (tmp_path / "fail").touch()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "rank 1 of 3 ended with code 7; stopping the others" in told
    assert not any(rank.is_running() for rank in ranks)


def test_held_signals_are_noted_however_they_arrive(tmp_path: Path) -> None:
    """Python's resource tracker unblocks SIGTERM and SIGINT in the thread that starts it."""
    script = (
        "import os, signal\n"
        "from multiprocessing import resource_tracker\n"
        "from pipeline.signals import hold_stop_signals, release_stop_signals, stop_was_asked\n"
        "before = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "found = hold_stop_signals()\n"
        "resource_tracker.ensure_running()\n"
        "assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "assert not stop_was_asked()\n"
        "assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "resource_tracker._resource_tracker._stop()\n"
        "resource_tracker.ensure_running()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stop_was_asked()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "assert signal.SIGUSR1 in signal.sigpending()\n"
        "release_stop_signals(found)\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "hold_stop_signals()\n"
        "assert not stop_was_asked()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "assert stop_was_asked()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


RANK = """
import threading, time
from pipeline import launch
def rank_main(job):
    threading.Thread(target=time.sleep, args=(600,)).start()  # what a teardown would wait for
    {body}
if __name__ == "__main__":
    words = ["--config", "run/config.yaml"]
    launch.main("rank_of_test", rank_main, words)
"""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("return launch.exit_codes.STOPPED", 75, ""),
        ("return None", 0, ""),
        ("raise launch.ConfigError('of a value')", 1, "error (rank ?): of a value\n"),
        ("raise RuntimeError('Connection closed by peer')", 1, "rank ?: lost the connection to "),
        ("open('/proc/no/file')", 1, "error (rank ?): [Errno 2] No such file or directory: '/proc"),
        ("return {}[job.train.steps]", 1, "Traceback (most recent call last)"),
    ],
)
def test_a_rank_ends_when_its_work_has_ended(
    body: str, code: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("cluster: {setup: []}")
    (tmp_path / "rank_of_test.py").write_text(RANK.format(body=body))
    environment = _environment(tmp_path)
    environment.pop("RANK", None)
    ended = subprocess.run(
        [sys.executable, "-m", "rank_of_test"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(told) and bool(ended.stderr) == bool(told)

"""The launcher against real processes: no rank outlives its peers or its parent."""

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
    "import sys; from pathlib import Path; from pipeline.launch import launch_ranks;"
    "sys.exit(launch_ranks('{module}', Path('config.yaml'), 3))"
)


@pytest.fixture
def module(tmp_path: Path):
    """Writes a module whose ranks do `body`; returns the command that launches three of them."""

    def write(body: str) -> list[str]:
        (tmp_path / "rank_of_test.py").write_text(
            "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + body
        )
        return [sys.executable, "-c", LAUNCH.format(module="rank_of_test")]

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
    subprocess.run(command, cwd=tmp_path, env=_environment(tmp_path), check=True, timeout=60)
    lines = [(tmp_path / f"out{rank}").read_text().split() for rank in range(3)]
    assert [line[:3] for line in lines] == [[str(rank), str(rank), "3"] for rank in range(3)]
    assert len({tuple(line[3:5]) for line in lines}) == 1
    assert all(line[5:] == ["--config", "config.yaml"] for line in lines)


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
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("up*"))) < 3:
        assert time.monotonic() < deadline
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

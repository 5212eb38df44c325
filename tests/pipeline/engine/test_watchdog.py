"""Processes that are really stuck, under the launcher that starts ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.test_launch import LAUNCH

STALL_S = 3.0
START = f"""
import ctypes, datetime, os, sys, time
from pipeline.engine.watchdog import Watchdog
rank = int(os.environ["RANK"])
watchdog = Watchdog("run", rank, {STALL_S})
"""


def _launch(folder: Path, body: str, num_ranks: int) -> subprocess.CompletedProcess[str]:
    (folder / "run").mkdir()
    (folder / "rank_of_test.py").write_text(START + body)
    program = LAUNCH.format(module="rank_of_test", stops_at_checkpoint=True)
    return subprocess.run(
        [sys.executable, "-c", program.replace(", 3, ", f", {num_ranks}, ")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}:{Path(__file__).parents[3]}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _stacks(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / "run" / "stacks").iterdir()}


@pytest.mark.slow
def test_ranks_in_a_collective_that_one_never_enters(tmp_path: Path) -> None:
    body = """
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
def waits_for_the_other():
    dist.all_reduce(torch.ones(1))
def never_comes():
    time.sleep(600)
dist.barrier()
with watchdog:
    for step in range(1200):
        watchdog.beat(step=step + 1)
    never_comes() if rank == 1 else waits_for_the_other()
"""
    ended = _launch(tmp_path, body, 2)
    assert ended.returncode == 1, ended.stderr
    stacks = _stacks(tmp_path)
    assert "in waits_for_the_other" in stacks["rank_00000_step_1200.txt"]
    assert "in never_comes" in stacks["rank_00001_step_1200.txt"]
    assert "in _watch" in stacks["rank_00001_step_1200.txt"]  # all threads
    for rank in range(2):
        line = rf"error \(rank {rank}\): nothing finished for 3 s \(since step 1200\); its stacks: "
        assert re.search(line + rf"run/stacks/rank_0000{rank}_step_1200.txt", ended.stderr)
    assert "stacks of the stuck ranks: run/stacks" in ended.stderr


def test_native_code_that_never_gives_the_interpreter_back(tmp_path: Path) -> None:
    body = """
def holds_the_lock():
    ctypes.PyDLL(None).sleep(600)
with watchdog:
    holds_the_lock()
"""
    ended = _launch(tmp_path, body, 1)
    assert ended.returncode == 1, ended.stderr
    assert "in holds_the_lock" in _stacks(tmp_path)["rank_00000_interpreter_stuck.txt"]
    assert "stacks of the stuck ranks: run/stacks" in ended.stderr


@pytest.mark.slow
def test_what_is_done_between_steps_is_named(tmp_path: Path) -> None:
    body = """
with watchdog:
    watchdog.beat(step=7)
    encode = watchdog.beating(time.sleep)
    for _ in range(5):
        encode(1)  # longer in all than a stall
    encode(600)
"""
    ended = _launch(tmp_path, body, 1)
    assert "nothing finished for 3 s (since step 7, in evaluation)" in ended.stderr
    (name,) = (name for name, text in _stacks(tmp_path).items() if text)
    assert name == "rank_00000_step_7.txt"


@pytest.mark.slow
def test_who_goes_on_lives_and_leaves_nothing(tmp_path: Path) -> None:
    body = f"""
with watchdog:
    for step in range(15):
        time.sleep({STALL_S / 10})
        watchdog.beat(step=step)
time.sleep({STALL_S * 1.5})  # nobody watches any more
"""
    ended = _launch(tmp_path, body, 1)
    assert ended.returncode == 0, ended.stderr
    assert _stacks(tmp_path) == {}
    assert ended.stderr == "starting 1 rank of rank_of_test, run_dir run\n"


def test_an_error_is_the_error_it_was(tmp_path: Path) -> None:
    ended = _launch(tmp_path, "with watchdog: raise SystemExit(9)", 1)
    assert ended.returncode == 9
    assert _stacks(tmp_path) == {} and "stacks" not in ended.stderr


@pytest.mark.slow
def test_stacks_that_cannot_be_written_do_not_keep_a_stuck_rank(tmp_path: Path) -> None:
    body = """
import shutil
with watchdog:
    shutil.rmtree("run/stacks")
    time.sleep(600)
"""
    ended = _launch(tmp_path, body, 1)
    assert ended.returncode == 1
    assert "its stacks could not be written: " in ended.stderr

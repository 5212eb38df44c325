"""The process group under the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import TrainJob
from pipeline.config.frozen import to_yaml
from tests.pipeline.test_launch import LAUNCH

RANK = """
import os, time
import torch, torch.distributed as dist
from pipeline import launch
from pipeline.distributed.world import init_distributed
def rank_main(job):
    world = init_distributed(job.cluster.timeout_minutes, 1)
    assert world.timeout.total_seconds() == 3
    world.barrier()
    if world.rank == 1:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))
if __name__ == "__main__":
    words = ["--config", "run/config.yaml"]
    launch.main("rank_of_test", rank_main, words)
"""


@pytest.mark.slow
def test_a_rank_that_waits_in_a_collective_fails_after_the_timeout(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    job = TrainJob()
    job.cluster.timeout_minutes = 0.05
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(job))
    (tmp_path / "rank_of_test.py").write_text(RANK)
    program = LAUNCH.format(module="rank_of_test", stops_at_checkpoint=True)
    ended = subprocess.run(
        [sys.executable, "-c", program.replace(", 3, ", ", 2, ")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Timed out waiting 3000ms" in ended.stderr and "dist.all_reduce" in ended.stderr
    assert "rank 0 of 2 ended with code 1; stopping the others" in ended.stderr

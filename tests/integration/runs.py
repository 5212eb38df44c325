"""Real training runs of the tiny model, in real processes, for the tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.pipeline.data.made_shards import make_samples, write_shards

ROOT = Path(__file__).parents[2]
# what differs between two runs that computed the same
CLOCKS = ("perf/", "data/wait_s")


def tiny_shards(folder: Path, num_samples: int = 50, per_shard: int = 7) -> Path:
    """Manifest of `num_samples` pictures in shards whose borders fit no batch."""
    return write_shards(folder, make_samples(num_samples), per_shard)


def train_command(*overrides: str, module: str = "pipeline.train") -> list[str]:
    return [sys.executable, "-m", module, *overrides]


def run(*overrides: str, module: str = "pipeline.train") -> subprocess.CompletedProcess[str]:
    """One run to its end, output captured; 4 minutes are a hang."""
    return subprocess.run(
        train_command(*overrides, module=module),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def start(*overrides: str, log: Path) -> subprocess.Popen[str]:
    with log.open("w") as output:
        return subprocess.Popen(
            train_command(*overrides),
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what only tells the time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(CLOCKS)} for line in lines
    ]


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The rank processes below a launcher, in the order of their rank."""
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    """Until `condition`, or an AssertionError with the log when the run ends before or 3 minutes
    pass."""
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def last_step(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0

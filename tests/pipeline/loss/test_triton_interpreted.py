"""Runs interpreted.py in a process of its own: see there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    "selection",
    ["top1 or apart or bfloat16 or offset or ring", pytest.param("test", marks=pytest.mark.slow)],
)
def test_kernels_in_the_interpreter(selection: str) -> None:
    checks = str(Path(__file__).with_name("interpreted.py"))
    options = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "-k", selection]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, checks],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout

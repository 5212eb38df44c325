"""A login node of the test: its sbatch and squeue are small scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def submit(
    login_node: Path, *words: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    for name in ("bash", "git"):
        link = login_node / name
        if not link.exists():
            link.symlink_to(f"/usr/bin/{name}")
    return subprocess.run(
        [sys.executable, "-m", "slurm.submit", *words],
        cwd=ROOT,
        env=os.environ | {"PATH": str(login_node)} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def restarted(script: str, run_dir: Path, times: int) -> subprocess.CompletedProcess[str]:
    """Without a PATH nothing after the check can run."""
    return subprocess.run(
        ["/bin/bash", ROOT / "slurm" / script, run_dir, "110"],
        env={"PATH": "", "SLURM_RESTART_COUNT": str(times), "SLURM_JOB_ID": "42"},
        capture_output=True,
        text=True,
        timeout=10,
    )

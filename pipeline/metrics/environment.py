"""What a reader of a run needs to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.distributed.world import World


def environment(world: World) -> dict[str, object]:
    """Versions, git revision, hardware. No host names, no variables."""
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor()
    return {
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
        "device": device or platform.machine(),
        "cpus": os.cpu_count(),
        "world_size": world.world_size,
    }


def git_revision() -> str:
    """Git revision of this code, with "-dirty" if files differ from it; "unknown" outside a
    repository."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        revision = ""
    return revision or "unknown"

"""The GPUs of this machine against the ranks that are to start on it, without torch, which takes
seconds to count them."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import ClusterConfig

DEVICES = Path("/dev")
"""NVIDIA's driver has a file nvidiaN here for each GPU; a container shows those it was given."""


def local_gpu_problems(cluster: ClusterConfig, gpus: int | None) -> list[str]:
    """What is wrong with starting the ranks of this machine beside its `gpus`: two ranks on one
    GPU, which NCCL refuses after a minute, or GPUs that nobody would use. None: not known."""
    ranks = cluster.ranks_per_node
    if not gpus or ranks == gpus:
        return []
    first = ",".join(str(number) for number in range(ranks))
    shows = f"this machine shows {gpus} GPU{'s' if gpus > 1 else ''} and a rank takes one"
    cpu = "CUDA_VISIBLE_DEVICES= before the command for ranks on CPU"
    if ranks > gpus:
        fix = f"give cluster.ranks_per_node={gpus}, or {cpu}"
    else:
        shows += f": {gpus - ranks} would idle"
        fix = (
            f"give cluster.ranks_per_node={gpus}, CUDA_VISIBLE_DEVICES={first} before the command "
            f"for {ranks} of them, or {cpu}"
        )
    return [f"cluster.ranks_per_node = {ranks}: {shows}; {fix}"]


def visible_gpus(
    environment: Mapping[str, str] | None = None, devices: Path = DEVICES
) -> int | None:
    """GPUs that torch would see, by CUDA_VISIBLE_DEVICES where that is set: it counts up to the
    first that is none, as CUDA does. None where that does not tell (parts of a GPU)."""
    environment = os.environ if environment is None else environment
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    there = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if not there or chosen is None:
        return there
    seen = 0
    for word in map(str.strip, chosen.split(",")):
        if word.startswith("MIG-"):
            return None
        is_uuid = word.startswith("GPU-")
        if not is_uuid and not (word.isdecimal() and int(word) < there):
            break
        seen += 1
    return seen

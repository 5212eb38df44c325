"""ClusterConfig to sbatch's options; what Slurm would refuse or misread is told before."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from pipeline.config import ClusterConfig
from pipeline.config.validation.cluster import gpu_problems

SETUP_FILE = "setup.sh"
# Ranks get signal_before_s - 10 seconds for their last checkpoint: less than 20 is none.
SHORTEST_WARNING_S = 30
LONGEST_WARNING_S = 65535  # sbatch's own limit


def cluster_problems(cluster: ClusterConfig, *, warned: bool = True) -> list[str]:
    """What only Slurm minds, as `field = value: what is wrong, what to do`. warned: whether the job
    is to be warned before its time limit."""
    problems = []
    if cluster.cpus_per_rank < 1:
        problems.append(f"cluster.cpus_per_rank = {cluster.cpus_per_rank}: must be >= 1")
    problems += gpu_problems(cluster)
    limit_s = time_limit_s(cluster.time_limit)
    if not limit_s:
        problems.append(
            f"cluster.time_limit = {cluster.time_limit}: give minutes, HH:MM:SS or D-HH:MM:SS, "
            "more than zero (in YAML between quotes: 24:00:00 is the number 86400 there)"
        )
    longest = min(LONGEST_WARNING_S, (limit_s or LONGEST_WARNING_S) - 1)
    if warned and not SHORTEST_WARNING_S <= cluster.signal_before_s <= longest:
        problems.append(
            f"cluster.signal_before_s = {cluster.signal_before_s}: give {SHORTEST_WARNING_S} to "
            f"{longest} (seconds before the end of cluster.time_limit = {cluster.time_limit})"
        )
    syntax = subprocess.run(
        ["bash", "-n"], input="\n".join(cluster.setup), capture_output=True, text=True, timeout=10
    )
    if syntax.returncode:
        problems.append(f"cluster.setup = {cluster.setup}: {syntax.stderr.strip()}")
    return problems


def time_limit_s(text: str) -> int | None:
    """Seconds of what sbatch takes: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = (numbers + [0, 0])[:3]
    else:
        hours, minutes, seconds = 0, *(numbers + [0])[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def sbatch_options(
    cluster: ClusterConfig,
    folder: Path,
    working_dir: Path,
    array: str = "",
    *,
    name: str = "",
    warned: bool = True,
) -> list[str]:
    """`folder` is the job's own, absolute; its name becomes the job's unless `name` is given. What
    is not asked for is the site's default. `array` is "0-63" or "0-63%16": at most 16 tasks at a
    time. `warned`: before the time limit, a USR1 to the batch shell."""
    asked = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    options = {
        "job-name": name or folder.name,
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.ranks_per_node,
        "cpus-per-task": cluster.cpus_per_rank,
        **({"gpus-per-node": cluster.gpus_per_node} if cluster.gpus_per_node else {}),
        "time": cluster.time_limit,
        **{name: value for name, value in asked.items() if value},
        # B: only the batch shell is warned; it tells the ranks, then requeues the job
        **({"signal": f"B:USR1@{cluster.signal_before_s}"} if warned else {}),
        "open-mode": "append",  # else Slurm truncates the output of a requeued job
        "chdir": working_dir,  # the paths of a configuration may be relative
        "output": str(folder / "slurm-").replace("%", "%%") + ("%A_%a" if array else "%j") + ".out",
        **({"array": array} if array else {}),
    }
    return ["--parsable", "--requeue", *(f"--{name}={value}" for name, value in options.items())]


def setup_script(cluster: ClusterConfig, python: str) -> str:
    """Sourced by the shell of every rank; a line of cluster.setup may set another PYTHON."""
    head = [
        "# Written by slurm.submit; every rank sources it, with set -e.",
        f"PYTHON={shlex.quote(python)}",
    ]
    return "\n".join([*head, *cluster.setup]) + "\n"

"""Warnings on the console. Each checks every log line and warns when a problem begins, not at every
line."""

from __future__ import annotations

import math
import os
import statistics

from pipeline.config import TrainJob

# Below this share of the step time, waiting is noise from single slow batches.
INPUT_BOUND_SHARE = 0.1
STRAGGLER_RATIO = 1.2
# A run starts at 14.3 and ends at 100 if it is long enough: open_clip's discussions 815 and 214.
LOWEST_LOGIT_SCALE = 5.0
# log-space: 0.01 at a scale of 100, far above float32's rounding there
_AT_CLAMP = 1e-4


class InputBound:
    """Warns about steps that wait for data, at the second such line in a row: a run's first line
    includes its cold start."""

    def __init__(self, config: TrainJob) -> None:
        self._config = config
        self._lines = 0

    def check(self, wait_share: float) -> str | None:
        self._lines = self._lines + 1 if wait_share >= INPUT_BOUND_SHARE else 0
        if self._lines != 2:
            return None
        cpus = (os.cpu_count() or 1) // max(1, self._config.cluster.ranks_per_node)
        return input_bound_verdict(wait_share, self._config.data.num_workers, cpus)


def input_bound_verdict(share: float, num_workers: int, cpus_per_rank: int) -> str:
    """What to do about steps that wait for data for `share` of their time."""
    if num_workers < cpus_per_rank:
        fix = f"raise data.num_workers from {num_workers}"
    else:
        fix = (
            f"data.num_workers = {num_workers} already, one for each of the rank's CPUs: give it "
            f"more CPUs, or store the images smaller"
        )
    return f"input-bound: {100 * share:.0f} % of step time; {fix}"


class Stragglers:
    """Warns about ranks whose towers take longer than the others', at the second such line in a
    row.

    All ranks finish a step together, so step times show nothing; the towers run before the ranks
    wait for each other.
    """

    def __init__(self, ranks_per_node: int) -> None:
        self._ranks_per_node = ranks_per_node
        self._lines: dict[int, int] = {}

    def check(self, towers_s: list[float]) -> list[str]:
        """towers_s: seconds per step in the towers, by rank."""
        middle = statistics.median(towers_s)
        slow = {
            rank: seconds / middle
            for rank, seconds in enumerate(towers_s)
            if seconds > STRAGGLER_RATIO * middle > 0
        }
        self._lines = {rank: self._lines.get(rank, 0) + 1 for rank in slow}
        return [self._verdict(rank, slow[rank]) for rank in slow if self._lines[rank] == 2]

    def _verdict(self, rank: int, ratio: float) -> str:
        node, local_rank = divmod(rank, self._ranks_per_node)
        return (
            f"rank {rank}: towers take {ratio:.2f}x the median of the ranks: all wait for it; see "
            f"the clocks of GPU {local_rank} on the job's node {node} (nvidia-smi -q -d "
            f"PERFORMANCE) and what else runs there, or leave that node out"
        )


class LogitScale:
    """Warns once if logit_scale sits at its clamp, and once if it falls too low."""

    def __init__(self, config: TrainJob) -> None:
        self._warmup_steps = config.train.warmup_steps
        self._max = config.loss.max_logit_scale
        self._warned: set[str] = set()

    def check(self, step: int, log_scale: float) -> str | None:
        if step <= self._warmup_steps:
            return None
        if log_scale >= self._max - _AT_CLAMP:
            return self._once(
                "clamp",
                f"step {step}: the logit scale is at its clamp of {math.exp(self._max):.1f}; usual "
                f"late in a long run, early it means that batches are too easy or train.lr is too "
                f"high",
            )
        if log_scale < math.log(LOWEST_LOGIT_SCALE):
            return self._once(
                "low",
                f"step {step}: the logit scale has fallen to {math.exp(log_scale):.1f}, below "
                f"{LOWEST_LOGIT_SCALE:g}; healthy runs stay between 14 and 100: look for wrong "
                f"captions, or lower train.lr",
            )
        return None

    def _once(self, kind: str, text: str) -> str | None:
        if kind in self._warned:
            return None
        self._warned.add(kind)
        return text

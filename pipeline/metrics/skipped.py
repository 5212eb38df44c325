"""run_dir/skipped/rank_00000.jsonl: the samples of steps without a finite gradient."""

from __future__ import annotations

from pathlib import Path

from pipeline.distributed.world import World
from pipeline.metrics.interval import TakenStep
from pipeline.metrics.record import JsonLines
from pipeline.state import TrainState

FOLDER = "skipped"


class SkippedSteps:
    """One file per rank, created at its first skipped step. A line holds the keys of the rank's
    share of the batch, so that a bad sample can be found."""

    def __init__(self, run_dir: Path, world: World) -> None:
        self._path = run_dir / FOLDER / f"rank_{world.rank:05d}.jsonl"
        self._rank = world.rank

    def start(self, state: TrainState) -> list[int]:
        """Drop the lines of steps that will be taken again. Returns samples_seen before each step
        that stays.

        After a kill a later step comes again with its samples. After a roll-back it does not: its
        samples are passed over, and its line is all that is left of it.
        """
        if not self._path.exists():
            return []
        lines = JsonLines(self._path)
        kept = lines.keep(
            lambda line: line["step"] <= state.step or line["samples_seen"] < state.samples_seen
        )
        lines.close()
        return [line["samples_seen"] for line in kept]

    def write(self, steps: list[TakenStep]) -> None:
        if not steps:
            return
        lines = JsonLines(self._path)
        for taken in steps:
            lines.append(
                {
                    "step": taken.step,
                    "samples_seen": taken.samples_before,
                    "rank": self._rank,
                    "keys": taken.keys,
                }
            )
        lines.close()

"""Faults of samples, and how many of them a run tolerates."""

from __future__ import annotations

import sys
from collections import Counter

from data_tools.ground.printable import printable

# With fewer samples than this a share says little, so it is taken of this number: at the default
# 0.001 ten bad samples are tolerated, and a data set that cannot be read ends the run at the
# eleventh.
_MIN_SAMPLES_READ = 10_000
_EXAMPLES_KEPT = 20


class LoaderError(RuntimeError):
    """Training cannot go on with this data; the message names the files or values and the fix."""


class SampleError(Exception):
    """One sample cannot be used. `shard` is a path in the manifest, `offset` the image's."""

    def __init__(self, reason: str, key: str, shard: str, offset: int) -> None:
        super().__init__(reason, key, shard, offset)
        self.reason = reason
        self.key = key
        self.shard = shard
        self.offset = offset

    def without_frames(self) -> SampleError:
        """A copy to keep: this error's traceback refers to the batch buffer it was raised under."""
        return SampleError(self.reason, self.key, self.shard, self.offset)

    def __str__(self) -> str:
        # keys and reasons are strangers' texts
        return printable(
            f"{self.reason} (key {self.key}, shard {self.shard}, offset {self.offset})"
        )


def max_bad(num_read: int, max_bad_fraction: float) -> float:
    """How many bad samples are tolerated among `num_read`."""
    return max_bad_fraction * max(num_read, _MIN_SAMPLES_READ)


class FaultCount:
    """Counts samples read and samples that cannot be used, and raises when their share exceeds
    `max_bad_fraction`.
    """

    def __init__(self, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.num_read = 0
        self.num_bad = 0
        self.examples: list[str] = []
        """The first faults, in the order of the run, as printed."""
        self._by_shard: Counter[str] = Counter()

    def record(self, num_read: int, errors: list[SampleError]) -> None:
        """Count a batch. Raises LoaderError, naming the worst shards, if more than the allowed
        share is bad.
        """
        self.num_read += num_read
        self.num_bad += len(errors)
        self._by_shard.update(error.shard for error in errors)
        for error in errors[: _EXAMPLES_KEPT - len(self.examples)]:
            self._keep(str(error))
        if errors and self.num_bad > max_bad(self.num_read, self.max_bad_fraction):
            raise LoaderError(self._verdict())

    def _keep(self, example: str) -> None:
        self.examples.append(example)

    def worst_shards(self, count: int = 5) -> list[tuple[str, int]]:
        """(shard, number of bad samples), the worst first."""
        return self._by_shard.most_common(count)

    def _verdict(self) -> str:
        worst = ", ".join(f"{shard} ({count})" for shard, count in self.worst_shards())
        examples = "\n  ".join(self.examples[:5])
        return (
            f"{self.num_bad} of {self.num_read} samples read by this rank could not be used, "
            f"more than data.max_bad_fraction={self.max_bad_fraction} allows. "
            f"Worst shards: {worst}. The first:\n  {examples}\n"
            f"Restore or repack these shards, or raise data.max_bad_fraction"
        )


class FaultLog(FaultCount):
    """The count of what the consumer took, with the first faults printed."""

    def _keep(self, example: str) -> None:
        super()._keep(example)
        print(f"bad sample replaced: {example}", file=sys.stderr)
        if len(self.examples) == _EXAMPLES_KEPT:
            print("further bad samples are counted, not printed", file=sys.stderr)

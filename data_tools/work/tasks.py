"""Divides work over the tasks of a Slurm array: each task takes every n-th unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_tools.config import ConfigError

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Task:
    """Task `index` (from 0) of `count`. ALL is the single task that takes all units."""

    index: int = 0
    count: int = 1

    def share(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units of this task. The shares of all tasks are disjoint, and together are all
        units."""
        return units[self.index :: self.count]


ALL = Task()


def parse_task(text: str) -> Task:
    """Task(3, 64) for "3/64", counted from 0. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--task {text}: give I/N with I from 0 to N - 1, such as --task 0/64")
    return Task(int(match[1]), int(match[2]))

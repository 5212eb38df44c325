"""How work is divided over the tasks of a Slurm array: each takes every n-th unit of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from data_tools.config import ConfigError

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Task:
    """Task `index` of `count`; ALL is the only one of one."""

    index: int = 0
    count: int = 1

    def share(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units of this task: disjoint from those of the others, together all of them."""
        return units[self.index :: self.count]


ALL = Task()


def parse_task(text: str) -> Task:
    """ "3/64" (from 0) to Task(3, 64). Raises ConfigError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--task {text}: give I/N with I from 0 to N - 1, such as --task 0/64")
    return Task(int(found[1]), int(found[2]))

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


def take_task(arguments: Sequence[str]) -> tuple[Task | None, list[str]]:
    """Take `--task I/N` (I from 0) out of a command line. Raises ConfigError."""
    rest = list(arguments)
    if "--task" not in rest:
        return None, rest
    place = rest.index("--task")
    given = rest[place + 1] if place + 1 < len(rest) else ""
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--task {given}: give I/N with I from 0 to N - 1, such as --task 0/64")
    return Task(int(found[1]), int(found[2])), rest[:place] + rest[place + 2 :]

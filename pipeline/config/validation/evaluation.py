"""Rules for evaluation sets: that each is one, and has a name of its own."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

NUMBER_OF_TARS = Path("test", "nshards.txt")


def validate_datasets(folders: Sequence[str]) -> list[str]:
    """The folders of eval.datasets. Scores are kept by a folder's last name."""
    problems = []
    of_name: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        problem = _layout(folder)
        if problem:
            problems.append(f"eval.datasets: {problem}")
        # file systems and dashboards of some sites take Pets and pets for one
        of_name[Path(folder).name.casefold()].append(folder)
    for name, same in of_name.items():
        if len(same) > 1 and name:
            problems.append(
                f"eval.datasets: {' and '.join(same)} have one name, by which scores are kept "
                f"({Path(same[0]).name}); rename a folder, or leave one out"
            )
    return problems


def _layout(folder: str) -> str:
    """What is wrong with one folder; empty for one that looks like a set."""
    if not Path(folder).name or Path(folder).name == "..":
        shown = folder or "''"
        return f"{shown} has no name, by which its scores would be kept; name the folder of a set"
    if not os.path.isdir(folder):
        return f"{folder} is no folder; correct or remove it"
    if not Path(folder, NUMBER_OF_TARS).is_file():
        return (
            f"{folder} has no {NUMBER_OF_TARS}: it is no set in CLIP_benchmark's WebDataset "
            "layout; name the folder that holds test/, or remove it"
        )
    return ""

"""Rules of an evaluation: only what it uses. Training data, batch sizes and the number of ranks
that trained do not concern it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_tools.ground.fields import out_of_bounds
from pipeline.config.schema import TrainJob
from pipeline.config.validation.model import validate_model

NUMBER_OF_TARS = Path("test", "nshards.txt")


def validate_evaluation(job: TrainJob) -> list[str]:
    """Every problem of scoring the run `job`; empty when the evaluation can start."""
    problems = []
    if not job.eval.datasets:
        problems.append(
            "eval.datasets is empty, so there is nothing to score: give eval.datasets=[FOLDER,...] "
            "(folders in CLIP_benchmark's WebDataset layout)"
        )
    threads = [
        problem
        for problem in out_of_bounds(job.train, "train")
        if problem.startswith("train.threads_per_rank ")
    ]
    return [
        *problems,
        *validate_eval_sets(job.eval.datasets),
        *validate_model(job.model),
        *out_of_bounds(job.model, "model"),
        *out_of_bounds(job.eval, "eval", without=["eval.every_steps"]),
        *out_of_bounds(job.cluster, "cluster"),
        *threads,
    ]


def validate_eval_sets(folders: Sequence[str]) -> list[str]:
    """Folders that are no set, and sets of one name: scores are kept by the folder's name."""
    problems = []
    by_name: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        problem = _layout(folder)
        if problem:
            problems.append(f"eval.datasets: {problem}")
        # file systems and dashboards of some sites take Pets and pets for one
        by_name[eval_set_name(folder).casefold()].append(folder)
    for name, same in by_name.items():
        if len(same) > 1 and name:
            problems.append(
                f"eval.datasets: {' and '.join(same)} have one name, by which scores are kept "
                f"({eval_set_name(same[0])}); rename a folder, or leave one out"
            )
    return problems


def eval_set_name(folder: str) -> str:
    """The last part of the folder's path: `data/eval/photos/` is "photos"."""
    return os.path.basename(os.path.abspath(folder))


def _layout(folder: str) -> str:
    """What is wrong with one folder; empty for one that looks like a set."""
    if not folder.strip() or not eval_set_name(folder):
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

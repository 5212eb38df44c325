"""Rules of an evaluation: only what it uses. Training data, batch sizes and the number of ranks
that trained do not concern it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from data_tools.ground.fields import out_of_bounds
from pipeline.config.schema import TrainJob
from pipeline.config.validation.model import validate_model


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
    """Sets that are no folder, and sets of one name: scores are kept by the folder's name."""
    problems = [
        f"eval.datasets: {folder} is no folder; correct or remove it"
        for folder in folders
        if not os.path.isdir(folder)
    ]
    by_name = defaultdict(list)
    for folder in folders:
        by_name[eval_set_name(folder)].append(folder)
    for name, same in by_name.items():
        if len(same) > 1:
            problems.append(
                f"eval.datasets: {' and '.join(same)} both have the name {name}, by which scores "
                f"are kept; rename a folder or leave one out"
            )
    return problems


def eval_set_name(folder: str) -> str:
    """The last part of the folder's path: `data/eval/photos/` is "photos"."""
    return os.path.basename(os.path.abspath(folder))

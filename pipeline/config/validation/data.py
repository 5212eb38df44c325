"""Rules for where samples come from."""

from __future__ import annotations

import os

from pipeline.config.schema import DataConfig, TrainJob
from pipeline.config.validation.evaluation import validate_eval_sets


def validate_data(job: TrainJob) -> list[str]:
    return _sources(job.data) + validate_eval_sets(job.eval.datasets)


def _sources(data: DataConfig) -> list[str]:
    given = [name for name in ("manifest", "mixture", "stream") if getattr(data, name)]
    if not given:
        return [
            "data.manifest is not given: add data.manifest=DIR/manifest.json (made by `make "
            "shards`)"
        ]
    problems = []
    if len(given) > 1:
        problems.append(
            " and ".join(f"data.{name}" for name in given) + " are given: they exclude each other; "
            "a data set more goes into data.mixture"
        )
    manifests = [("data.manifest", data.manifest)] if data.manifest else []
    for number, source in enumerate(data.mixture):
        manifests.append((f"data.mixture[{number}].manifest", source.manifest))
    problems += [
        f"{name} = {path}: no such file; `make shards` writes it"
        for name, path in manifests
        if "://" not in path and not os.path.isfile(path)
    ]
    if data.stream and data.resample:
        problems.append("data.resample = true: a stream has no index to draw from; give a manifest")
    return problems

"""Rules for where samples come from."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from fsspec.core import split_protocol

from pipeline.config.schema import DataConfig, TrainJob
from pipeline.config.validation.evaluation import validate_eval_sets
from pipeline.config.validation.protocols import missing_protocol


def validate_data(job: TrainJob) -> list[str]:
    return [*_sources(job.data), *validate_eval_sets(job.eval.datasets)]


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
    problems += [problem for name, path in manifests for problem in _manifest(name, path)]
    problems += [problem for url in data.stream for problem in _tar(url)]
    if data.stream and data.resample:
        problems.append("data.resample = true: a stream has no index to draw from; give a manifest")
    return problems


def _manifest(name: str, path: str) -> list[str]:
    """Problems with one data set's manifest, of which only JSON is looked at: every rank checks the
    rest of it."""
    if not path:
        return [f"{name} is not given: add manifest: DIR/manifest.json"]
    if split_protocol(path)[0] is not None:
        missing = missing_protocol(path)
        return [f"{name} = {path}: {missing}"] if missing else []
    if os.path.isdir(path):
        return [f"{name} = {path}: is a folder; give {Path(path, 'manifest.json')}"]
    if not os.path.isfile(path):
        return [f"{name} = {path}: no such file; `make shards` writes it"]
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        return [f"{name} = {path}: cannot be read ({error.strerror}); ask its owner for access"]
    except ValueError as error:
        return [f"{name} = {path}: is no JSON ({error}); `make shards` writes it"]
    if not isinstance(content, dict):
        return [f"{name} = {path}: is no manifest; `make shards` writes manifest.json"]
    return []


def _tar(url: str) -> list[str]:
    """Whether a tar of a stream that is a plain path of this machine is there."""
    is_plain = split_protocol(url)[0] is None and not re.search(r"[{}]|^pipe:|^-$", url)
    if not is_plain or os.path.isfile(url):
        return []
    return [f"data.stream: {url}: no such file; name tars, or URLs that webdataset reads"]


def num_samples_of(data: DataConfig) -> int | None:
    """Samples per epoch; None where they are not known here: in a store, of a mixture (which each
    rank lays out), resampled (which each rank draws) or of a stream."""
    if not data.manifest or data.mixture or data.stream or data.resample:
        return None
    try:
        found = json.loads(Path(data.manifest).read_text(encoding="utf-8"))["num_samples"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None

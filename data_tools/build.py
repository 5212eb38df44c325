"""START HERE. Queries to shards: the whole flow of the data half on one page.

    python -m data_tools.build queries.path=my_queries.txt out_dir=data/mine \\
        source=commons sources.contact=you@example.org

Each stage reads the tables of the stages before it and writes its own below out_dir; a run that was
killed goes on where it was, and a stage whose settings and inputs have not changed is not run
again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from data_tools import (
    balance,
    candidates,
    crawl,
    curate,
    match,
    pack,
    queries,
    rebalance,
    report,
    search,
)
from data_tools.config import (
    CONFIGURATION,
    ConfigError,
    DatasetJob,
    data_settings,
    fingerprint,
    load_job,
    to_yaml,
)
from data_tools.dataset.manifest import ManifestError
from data_tools.ground.aside import write_text_aside
from data_tools.ground.command_line import run
from data_tools.ground.lock import HeldError, LockError, take
from data_tools.ground.settings import Command
from data_tools.tables.schema import DataError, DatasetPaths
from data_tools.tables.stream import unreadable_tables
from data_tools.work.tasks import Task, parse_task

Counts = dict[str, int]


@dataclass(frozen=True)
class Stage:
    name: str
    run: Callable[[DatasetJob, DatasetPaths], Counts]
    settings: Callable[[DatasetJob], tuple[object, ...]]
    """What of the job, and of the outside, the stage's output depends on, besides the output of the
    stage before."""
    writes: Callable[[DatasetPaths], Path]
    share: Callable[[DatasetJob, DatasetPaths, Task], Counts] | None = None
    """One task's share of the stage's work; `run` does what no task has done, and puts it together.
    None where the stage is not divided."""


def _settings(*groups: str) -> Callable[[DatasetJob], tuple[object, ...]]:
    return lambda job: tuple(data_settings(job)[group] for group in groups)


STAGES = (
    Stage(
        "queries",
        queries.run,
        lambda job: (data_settings(job)["queries"], queries.inputs(job)),
        lambda p: p.table("queries"),
    ),
    Stage(
        "match",
        match.run,
        lambda job: (
            job.sources.pool,
            data_settings(job)["match"],
            match.inputs(job.sources.pool),
        ),
        lambda p: p.matched,
        match.run_share,
    ),
    Stage(
        "search",
        search.run,
        lambda job: (*_settings("sources", "search")(job), search.target(job)),
        lambda p: p.table("searched"),
    ),
    Stage("candidates", candidates.run, _settings(), lambda p: p.table("candidates")),
    Stage("balance", balance.run, _settings("balance"), lambda p: p.table("kept")),
    Stage(
        "crawl",
        crawl.run,
        lambda job: (*_settings("crawl")(job), crawl.inputs(job)),
        lambda p: p.table("fetched"),
        crawl.run_share,
    ),
    Stage(
        "curate",
        curate.run,
        lambda job: (*_settings("curate")(job), curate.inputs(job)),
        lambda p: p.table("curated"),
    ),
    Stage("rebalance", rebalance.run, _settings(), lambda p: p.table("balanced")),
    Stage(
        "pack",
        pack.run,
        lambda job: (*_settings("pack")(job), job.pack.target_url or ""),
        lambda p: p.manifest,
        pack.run_share,
    ),
    Stage(
        "report",
        report.run,
        lambda job: (job.report, report.inputs(job)),
        lambda p: p.report,
    ),
)


@contextmanager
def _alone(root: Path, shared: bool = False) -> Iterator[None]:
    """Two builds in one folder would write over each other; tasks of one stage may be many.
    ConfigError when another is at work: nothing was started."""
    try:
        lock = take(root / ".lock", shared=shared)
    except HeldError as error:
        raise ConfigError(
            f"another build is at work in {root} ({error}): wait for it, or give another out_dir"
        ) from None
    except LockError as error:
        raise ConfigError(f"out_dir = {root}: {error}") from error
    with lock:
        yield


def build(job: DatasetJob, until: str = STAGES[-1].name) -> Counts:
    """Run every stage that is not done, up to `until`; returns the last stage's counts. DataError
    names what failed and the fix."""
    paths = DatasetPaths(Path(job.out_dir))
    paths.root.mkdir(parents=True, exist_ok=True)
    counts: Counts = {}
    with _alone(paths.root):
        write_text_aside(paths.config, to_yaml(job))
        for stage, chain in chained(job):
            counts = _run_stage(stage, chain, job, paths)
            if stage.name == until:
                break
    if until == STAGES[-1].name:
        print(f"  manifest: {paths.manifest}\n      card: {paths.report}", flush=True)
    return counts


def _names() -> str:
    return "the stages are " + ", ".join(stage.name for stage in STAGES)


def build_stage(name: str, job: DatasetJob, task: Task | None = None) -> Counts:
    """Run one stage alone, or one task's share of it. DataError when a stage before it is not done
    with these settings."""
    paths = DatasetPaths(Path(job.out_dir))
    paths.root.mkdir(parents=True, exist_ok=True)
    with _alone(paths.root, shared=task is not None):
        for stage, chain in chained(job):
            if stage.name == name:
                break
            if finished(paths, stage, chain) is None:
                raise DataError(
                    f"{name} needs the stage {stage.name}, which is not done with these settings: "
                    f"run python -m data_tools.build --stage {stage.name} first, or all of them "
                    "without --stage"
                )
        if task is None:
            return _run_stage(stage, chain, job, paths)
        if stage.share is None:
            raise ConfigError(f"--task: the stage {name} is not divided into tasks; leave it out")
        return stage.share(job, paths, task)


def chained(job: DatasetJob) -> Iterator[tuple[Stage, str]]:
    """Each stage with the fingerprint of its settings and of all before it: a change anywhere
    re-runs everything after it."""
    chain = ""
    for stage in STAGES:
        chain = fingerprint(stage.name, chain, *stage.settings(job))
        yield stage, chain


def _run_stage(stage: Stage, chain: str, job: DatasetJob, paths: DatasetPaths) -> Counts:
    started = time.monotonic()
    done = finished(paths, stage, chain)
    counts = done if done is not None else stage.run(job, paths)
    if done is None:
        _mark_finished(paths, stage, chain, counts)
    summary = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
    how = "unchanged" if done is not None else f"{time.monotonic() - started:.1f} s"
    print(f"{stage.name:>10}: {summary} ({how})", flush=True)
    return counts


def _marker(paths: DatasetPaths, stage: Stage) -> Path:
    return paths.root / "tables" / "done" / f"{stage.name}.json"


def finished(paths: DatasetPaths, stage: Stage, chain: str) -> Counts | None:
    try:
        marker = json.loads(_marker(paths, stage).read_text())
    except (OSError, ValueError):
        return None
    whole = marker.get("fingerprint") == chain and stage.writes(paths).exists()
    return dict(marker["counts"]) if whole else None


def _mark_finished(paths: DatasetPaths, stage: Stage, chain: str, counts: Counts) -> None:
    content = json.dumps({"fingerprint": chain, "counts": counts}) + "\n"
    write_text_aside(_marker(paths, stage), content)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    until: str = ""
    """Run the stages up to this one; empty runs them all. The stages in order: queries, match,
    search, candidates, balance, crawl, curate, rebalance, pack, report."""
    stage: str = ""
    """Run this stage alone; those before it must be done with the same settings."""
    task: str = ""
    """With stage=match, crawl or pack: a share of the stage's work as I/N, I from 0 to N - 1; the
    stage without task does what is left and puts it together."""


def _check(given: Mapping[str, Any]) -> list[str]:
    until, stage, task = (given.get(name, "") for name in ("until", "stage", "task"))
    problems = []
    if stage and until:
        problems.append("--stage runs one stage, --until all up to one: give one of the two")
    if task and not stage:
        problems.append(f"--task {task}: a share of one stage; add --stage STAGE")
    for flag, name in (("--until", until), ("--stage", stage)):
        if name and name not in [stage.name for stage in STAGES]:
            problems.append(f"{flag} {name}: there is no such stage; {_names()}")
    if task:
        try:
            parse_task(task)
        except ConfigError as error:
            problems.append(str(error))
    return problems


COMMAND = Command(
    name="data_tools.build",
    purpose="Queries to shards: find (url, caption) pairs, balance, crawl, filter and pack them "
    "into a data set. A run that was killed goes on where it was; a stage whose settings and "
    "inputs have not changed is not run again.",
    settings=BuildSettings,
    goes_on=True,
    example="queries.path=my_queries.txt out_dir=data/mine source=commons "
    "sources.contact=you@example.org",
    check=_check,
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
    failed_by=(DataError, ManifestError, OSError),
)


def main(arguments: list[str]) -> int:
    """All stages, or up to one, or one alone, or a task's share of one; returns the exit code."""
    return run(COMMAND, arguments, _build)


def _build(settings: BuildSettings, overrides: list[str]) -> None:
    last = settings.stage or settings.until or STAGES[-1].name
    job = load_job(overrides, last)
    try:
        if settings.stage:
            build_stage(last, job, parse_task(settings.task) if settings.task else None)
        else:
            build(job, last)
    except (DataError, ManifestError, OSError):
        raise  # pyarrow's errors are OSErrors in part: these have their explanation
    except (pa.ArrowException, duckdb.Error) as error:
        damaged = unreadable_tables(Path(job.out_dir) / "tables")
        if not damaged:
            raise
        raise DataError(
            f"{', '.join(map(str, damaged))}: not readable as parquet ({error}). Delete "
            f"what is named here and {Path(job.out_dir) / 'tables' / 'done'}, and run again"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

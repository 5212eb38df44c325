"""The crawl stage: kept pairs in parts, each part fetched by one img2dataset run, verified, and put
in place.

    crawl/plan.{parquet,json}               which rows are in which part (part_plan.py)
    crawl/part-00000/                       a finished part (part.py)
    crawl/retry-01/{plan.*,part-00000}      the same for the URLs that a first retry round takes

A part that exists is not crawled again. One that was made of other rows or with other settings is
refused, never mixed in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import CrawlConfig, DatasetJob, fingerprint
from data_tools.config.crawl import retry_rounds
from data_tools.crawl.child_processes import GuardProcess, sigterm_raises
from data_tools.crawl.collect import collect
from data_tools.crawl.fetch_error import PASSING
from data_tools.crawl.guard import GuardSettings
from data_tools.crawl.hosts import MAX_WAIT_S
from data_tools.crawl.kept_rows import sorted_rows, source_of
from data_tools.crawl.part import Part, crawl_part
from data_tools.crawl.part_plan import Plan, make_plan
from data_tools.ground.fields import hashable
from data_tools.tables.schema import FATES, DataError, DatasetPaths
from data_tools.work.identity import user_agent
from data_tools.work.progress import StageProgress
from data_tools.work.tasks import ALL, Task

# These change how fast or how often a crawl asks, not what it gets.
SETTINGS_WITHOUT_EFFECT_ON_PARTS = {
    "processes",
    "threads",
    "stall_timeout_s",
    "connections_per_host",
    "requests_per_host_per_s",
    "retry_rounds",
}


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Crawl every kept pair, starting with the first part that does not exist yet. Returns the
    counts. Raises DataError if no image came."""
    rounds = _crawl(job, paths, ALL)
    return collect(rounds, paths, job.crawl)


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task) -> dict[str, int]:
    """Crawl the parts of one task that do not exist yet; returns their number and that of their
    rows.

    A retry round can begin when all tasks are done with the round before it. A task that comes
    too early leaves it out, and the stage run without --task does what is left. Raises DataError
    if nothing was kept."""
    rounds = _crawl(job, paths, task)
    own = [part for parts in rounds for part in task.share(parts)]
    return {"parts": len(own), "rows": sum(part.num_rows for part in own)}


def _crawl(job: DatasetJob, paths: DatasetPaths, task: Task) -> list[list[Part]]:
    """The parts of each round that could begin; those of `task` exist afterwards."""
    rounds: list[list[Part]] = []
    last = retry_rounds(job.crawl)
    for number in range(last + 1):
        if number and not all(part.is_done for part in rounds[-1]):
            break
        rounds.append(_plan_round(job, paths, number, rounds[-1] if rounds else []))
        settings = guard_settings(job, is_last=number == last)
        _crawl_share(job, settings, rounds[-1], task, "crawl" if number == 0 else f"retry {number}")
    return rounds


def _crawl_share(
    job: DatasetJob, settings: GuardSettings, parts: list[Part], task: Task, name: str
) -> None:
    own = task.share(parts)
    for part in own:
        part.refuse_another()
    todo = [part for part in own if not part.is_done]
    if not todo:
        return
    with StageProgress(name, total=sum(part.num_rows for part in own)) as progress:
        progress.advance(sum(part.num_rows for part in own if part.is_done))
        done = progress.done
        # a new guard for each round, because a guard remembers dead hosts and closed ones
        with sigterm_raises(), GuardProcess(settings) as guard:
            for part in todo:
                crawl_part(part, job.crawl, guard, progress)
                done += part.num_rows
                progress.update(done)


def _plan_round(
    job: DatasetJob, paths: DatasetPaths, number: int, before: list[Part]
) -> list[Part]:
    config, kept = job.crawl, paths.table("kept")
    if number == 0:
        folder = paths.crawl
        plan = make_plan(
            folder,
            source_of(kept, config.face_boxes),
            config.samples_per_part,
            lambda: sorted_rows(kept, config.face_boxes, folder),
        )
    else:
        folder = paths.crawl / f"retry-{number:02d}"
        fates = [part.folder / "fates.parquet" for part in before]
        source = [[part.fingerprint, file.stat().st_mtime_ns] for part, file in zip(before, fates)]
        plan = make_plan(folder, source, config.samples_per_part, lambda: rows_to_retry(before))
    parts = parts_of(plan, config, folder, paths.crawl)
    _refuse_more_parts(parts, folder)
    return parts


def rows_to_retry(parts: list[Part]) -> Iterator[pa.Table]:
    """Yield, per part, the rows whose last fate was a failure that may be gone later."""
    for part in parts:
        fates = part.read("fates", FATES)
        passing = pc.is_in(fates["status"], value_set=pa.array(sorted(PASSING)))
        rows = part.rows()
        if not rows["uid"].equals(fates["uid"]):
            raise DataError(f"{part.folder} has fates of other rows than its plan: delete it")
        yield rows.filter(passing)


def parts_of(plan: Plan, config: CrawlConfig, folder: Path, crawl_folder: Path) -> list[Part]:
    """The parts of a plan in `folder`, with fingerprints of their rows and of `config`."""
    settings = {
        k: v for k, v in hashable(config).items() if k not in SETTINGS_WITHOUT_EFFECT_ON_PARTS
    }
    return [
        Part(
            folder / f"part-{index:05d}",
            crawl_folder,
            plan,
            index,
            fingerprint(settings, size.digest),
        )
        for index, size in enumerate(plan.parts)
    ]


def _refuse_more_parts(parts: list[Part], folder: Path) -> None:
    ours = {part.folder.name for part in parts}
    for path in sorted(folder.iterdir()):
        if re.fullmatch(r"part-\d+", path.name) and path.name not in ours:
            raise DataError(
                f"{path} was crawled from other rows or with other settings: there are "
                f"{len(parts)} parts now. Give another out_dir, or delete {folder} to crawl again"
            )


def guard_settings(job: DatasetJob, is_last: bool = False) -> GuardSettings:
    """The job's settings that the guard needs. In the last round, whose URLs nobody asks for again,
    they may wait long for their host's turn."""
    own = {"user_agent", "host_wait_s"}
    shared = {field.name for field in dataclasses.fields(GuardSettings)} - own
    crawl = {name: getattr(job.crawl, name) for name in shared}
    longest = job.crawl.max_host_wait_s
    return GuardSettings(
        user_agent=user_agent(job.sources.contact),
        host_wait_s=longest if is_last else min(MAX_WAIT_S, longest),
        **crawl,
    )

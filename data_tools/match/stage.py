"""The match stage: matches all units of the pools, or one task's share of them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_tools.config import DatasetJob, PoolConfig
from data_tools.match.pool import RowCounts, find_files, problems_of
from data_tools.match.units import (
    MatchSettings,
    Unit,
    counts_of,
    match_unit,
    of_earlier_rules,
    plan_units,
    queries_digest,
)
from data_tools.tables.schema import DataError, DatasetPaths
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress
from data_tools.work.tasks import ALL, Task

# Files that are checked at the same time: for a remote file a check is a request or two.
CHECKS_AT_A_TIME = 8
MAX_SHOWN_PROBLEMS = 20


def inputs(config: PoolConfig) -> list[tuple[str, int, str]]:
    """Name, size and version of every file of the pools: the stage runs again when one changes."""
    if not config.enabled:
        return []
    return [(file.name, file.size, file.version) for file in find_files(config)]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Match every unit that no task has matched yet, and delete the tables of other pools and
    settings. Returns the counts."""
    units = _units(job)
    counts = _match(units, units, job, paths)
    current = {unit.table_name for unit in units}
    for file in paths.matched.iterdir():
        if file.name not in current:
            file.unlink()
    return counts


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task = ALL) -> dict[str, int]:
    """Match one task's share of the units, each to a table in `paths.matched`. Returns its
    counts."""
    units = _units(job)
    return _match(list(task.share(units)), units, job, paths)


def _units(job: DatasetJob) -> list[Unit]:
    if not job.sources.pool.enabled:
        return []
    return plan_units(find_files(job.sources.pool), job.match.unit_bytes)


def _match(
    own: list[Unit], units: list[Unit], job: DatasetJob, paths: DatasetPaths
) -> dict[str, int]:
    paths.matched.mkdir(parents=True, exist_ok=True)
    if not units:
        return {"pool_rows": 0}
    queries = paths.table("queries")
    digest = queries_digest(queries, job.match.case_sensitive)
    settings = MatchSettings(job.sources.pool, job.match, queries, digest)
    done = {unit: _counts(unit, settings, paths.matched) for unit in own}
    todo = [unit for unit, counts in done.items() if counts is None]
    _check(todo, job.sources.pool)
    _tell_of_earlier_rules(todo, settings, paths.matched)
    total = RowCounts()
    for counts in done.values():
        total.add(counts or RowCounts())
    with StageProgress("match", total=len(own)) as progress:
        progress.update(len(own) - len(todo))
        work = [(unit, settings, paths.matched) for unit in todo]
        for counts in in_processes(match_unit, work, job.match.processes):
            total.add(counts)
            progress.advance()
    return {
        "pool_units": len(own),
        "pool_rows": total.rows,
        "pool_null": total.null,
        "pool_unreadable": total.unreadable,
        "pool_not_http": total.not_http,
        "pool_too_long": total.too_long,
        "pool_unusable_urls": total.unusable_urls,
        "pool_unmatched": total.unmatched,
        "matched": total.matched,
    }


def _counts(unit: Unit, settings: MatchSettings, folder: Path) -> RowCounts | None:
    return counts_of(folder / unit.table_name, settings.fingerprint(unit))


def _tell_of_earlier_rules(todo: list[Unit], settings: MatchSettings, folder: Path) -> None:
    """A stage that was finished stays as it is. One that was not must not mix two rules."""
    earlier = sum(of_earlier_rules(unit, settings, folder) for unit in todo)
    if earlier:
        print(
            f"match: {earlier:,} of the {len(todo):,} units to do were matched by an earlier "
            "version, which knew no typographic apostrophes, hyphens and entities; they are "
            "matched again, so that all pairs are of one rule",
            file=sys.stderr,
        )


def _check(units: list[Unit], config: PoolConfig) -> None:
    """Raise a DataError with the problems of all files, before any rows are read."""
    files = list(dict.fromkeys(unit.file for unit in units))
    with ThreadPoolExecutor(CHECKS_AT_A_TIME) as pool:
        problems = [
            line for lines in pool.map(lambda f: problems_of(f, config), files) for line in lines
        ]
    if problems:
        hidden = len(problems) - MAX_SHOWN_PROBLEMS
        more = [f"(+{hidden} more)"] if hidden > 0 else []
        shown = "\n  ".join(problems[:MAX_SHOWN_PROBLEMS] + more)
        raise DataError(f"the pool cannot be read:\n  {shown}")

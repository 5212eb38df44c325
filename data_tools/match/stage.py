"""The match stage: matches all units of the pools, or one task's share of them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_tools.config import DatasetJob, PoolConfig
from data_tools.match.pool import Account, PoolFile, find_files, problems_of
from data_tools.match.units import (
    MatchSettings,
    Unit,
    account_of,
    match_or_problem,
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
MAX_SHOWN_FILES = 20


def inputs(config: PoolConfig) -> list[tuple[str, int, str]]:
    """Name, size and version of every file of the pools: the stage runs again when one changes."""
    if not config.enabled:
        return []
    files = find_files(config)
    found = [(file.name, file.size, file.version) for file in files]
    # quoted=null is hashed as true, its default before: only tsv is read otherwise with true
    if config.quoted and any(file.kind == ".tsv" for file in files):
        found.append(("sources.pool.quoted=true", 0, ""))
    return found


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
    done = {unit: _account(unit, settings, paths.matched) for unit in own}
    todo = [unit for unit, account in done.items() if account is None]
    _check(todo, job.sources.pool)
    _tell_of_earlier_rules(todo, settings, paths.matched)
    accounts = {unit: account for unit, account in done.items() if account is not None}
    problems = []
    with StageProgress("match", total=len(own)) as progress:
        progress.update(len(own) - len(todo))
        work = [(unit, settings, paths.matched) for unit in todo]
        for unit, found in zip(todo, in_processes(match_or_problem, work, job.match.processes)):
            progress.advance()
            if isinstance(found, Account):
                accounts[unit] = found
            else:
                problems.append(found)
                if len(problems) == MAX_SHOWN_PROBLEMS:
                    break
    _raise_if_any(problems)
    return _summed([(unit.file, accounts[unit]) for unit in own])


def _summed(parts: list[tuple[PoolFile, Account]]) -> dict[str, int]:
    """The counts of all units; prints a line per file."""
    files: dict[PoolFile, Account] = {}
    total = Account()
    for file, account in parts:
        files.setdefault(file, Account()).add(account)
        total.add(account)
    # the files with the most unreadable rows are shown first where there are too many
    worst = sorted(files, key=lambda file: -files[file].counts.unreadable)[:MAX_SHOWN_FILES]
    for file in files:
        if file in worst:
            print(files[file].line(file.name), flush=True)
    if len(files) > len(worst):
        print(f"pool: (+{len(files) - len(worst):,} more files)", flush=True)
    rows = total.counts
    return {
        "pool_units": len(parts),
        "pool_rows": rows.rows,
        "pool_more_captions": rows.more_captions,
        "pool_null": rows.null,
        "pool_unreadable": rows.unreadable,
        "pool_not_http": rows.not_http,
        "pool_too_long": rows.too_long,
        "pool_unusable_urls": rows.unusable_urls,
        "pool_unmatched": rows.unmatched,
        "matched": rows.matched,
    }


def _account(unit: Unit, settings: MatchSettings, folder: Path) -> Account | None:
    return account_of(folder / unit.table_name, settings.fingerprint(unit))


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
    _raise_if_any(problems)


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        hidden = len(problems) - MAX_SHOWN_PROBLEMS
        more = [f"(+{hidden} more)"] if hidden > 0 else []
        shown = "\n  ".join(problems[:MAX_SHOWN_PROBLEMS] + more)
        raise DataError(f"the pool cannot be read:\n  {shown}")

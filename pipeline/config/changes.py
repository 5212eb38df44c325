"""What may differ in a run that goes on from the run that was begun."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from data_tools.ground.fields import changeable_names, fixed_names
from pipeline.config.frozen import values_by_name
from pipeline.config.schema import ConfigError, TrainJob

DATA = ("data.manifest", "data.mixture", "data.stream")
"""Fields that name the data. What lies behind them may change while the words stay, so force may
always name them."""


def refuse_another(job: TrainJob, kept: TrainJob) -> None:
    """ConfigError where `job` is not the run that was started, or where `force` is not exact.

    A job that is the run throughout is accepted with the `force` that made it so: a requeued one
    has it, and the checkpoint may be older than what it changed.
    """
    if job == kept:
        return
    known = {*kept.force, *DATA}
    before, now, may_change = values_by_name(kept), values_by_name(job), changeable_names(job)
    differing = [name for name in now if before[name] != now[name] and name not in may_change]
    cannot = _cannot_change(job, kept)
    problems = _wrong_force(job.force, now, differing, known, may_change, cannot)
    if problems:
        raise ConfigError("\n  ".join(problems))
    unnamed = [name for name in differing if name not in job.force]
    if not unnamed:
        return
    changes = "\n".join(f"  - {name}: {before[name]}\n  + {name}: {now[name]}" for name in unnamed)
    never = [name for name in unnamed if name in cannot]
    fix = "name another run_dir, or resume with nothing but run_dir=... given"
    if never:
        fix += "".join(
            f"; {name} stays {before[name]} in this run: {cannot[name]}" for name in never
        )
    else:
        fix += f", or change the run from here on with force=[{','.join(differing)}]"
    raise ConfigError(
        f"run_dir = {job.run_dir}: holds a run of another configuration (- of the run, + given "
        f"now):\n{changes}\n{fix}"
    )


def _cannot_change(job: TrainJob, kept: TrainJob) -> dict[str, str]:
    """Full name -> reason of each field that cannot be forced to what `job` has."""
    cannot = fixed_names(job)
    for tower in ("image", "text"):
        name = f"{tower}_lr_scale"
        if getattr(kept.train, name) == 0 < getattr(job.train, name):
            cannot[f"train.{name}"] = "its checkpoints have no moments of the tower, it was frozen"
    return cannot


def _wrong_force(
    force: list[str],
    now: Mapping[str, str],
    differing: list[str],
    known: set[str],
    may_change: set[str],
    cannot: Mapping[str, str],
) -> list[str]:
    problems = []
    for name in force:
        if name not in now:
            like = difflib.get_close_matches(name, now, n=1)
            hint = f"; do you mean {like[0]}?" if like else "; give full names, such as train.lr"
            problems.append(f"force names {name}, which is no field{hint}")
        elif name in may_change:
            problems.append(f"force names {name}, which may change anyway: leave it out")
        elif name in differing and name in cannot:
            problems.append(
                f"force names {name}, which cannot change in a run: {cannot[name]}; leave it out "
                "in both places, or name another run_dir"
            )
        elif name not in differing and name not in known:
            problems.append(
                f"force names {name}, which is {now[name]} in the run too: leave it out"
            )
    return problems

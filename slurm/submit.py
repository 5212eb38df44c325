"""Compose, validate, submit: the training, dataset job or evaluation of a command line, as a Slurm
job.

    python -m slurm.submit experiment=... cluster=multi_node cluster.partition=gpu   train
    python -m slurm.submit run_dir=runs/mine                                go on with that run
    python -m slurm.submit --evaluate run_dir=runs/mine         score its newest checkpoint
    python -m slurm.submit --shards queries.path=... out_dir=... cluster.time_limit=8:00:00
    python -m slurm.submit --shards --tasks 64 ...          the same as a chain with arrays
    ... --dry-run                                               print what would be submitted

Runs on a login node: needs neither torch nor a GPU. Exit codes: 0 submitted, 1 Slurm refused, 2 the
configuration or the command line was refused.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from data_tools.ground.aside import write_text_aside
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command
from pipeline.commands import EvaluateSettings, check_step
from pipeline.config import ConfigError
from pipeline.config.run_config import refuse_misfit, write_submitted
from pipeline.config.run_files import SUBMITTED
from slurm.evaluation import evaluation_submission
from slurm.jobs import Step, Submission, configuration, shards_submission, training_submission

SLURM_TIMEOUT_S = 60.0
REPOSITORY = Path(__file__).resolve().parents[1]
# Slurm sets more inside an allocation, and a job submitted from there would inherit its sizes.
KEPT_SLURM_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


class SlurmError(RuntimeError):
    """Slurm is not there, did not answer, or refused; the message carries what it said."""


def dry_run(submission: Submission) -> str:
    """What would be submitted; writes nothing. ConfigError when the folder holds another run."""
    if submission.train is not None:
        refuse_misfit(submission.train)
    commands = [
        shlex.join(_after(step, f"JOBID_OF_{before.name}" if before else None))
        for before, step in zip([None, *submission.steps], submission.steps)
    ]
    lines = "\n".join(commands)
    return (
        f"{lines}\n\n"
        f"# {submission.folder / submission.setup_file}\n{submission.setup}\n"
        f"# {submission.script}\n{submission.script.read_text()}"
    )


def _after(step: Step, job_id: str | None) -> list[str]:
    """The command of a step that waits for `job_id`; Slurm cancels it when that one fails."""
    if job_id is None:
        return step.command
    return [
        *step.command[:1],
        f"--dependency=afterok:{job_id}",
        "--kill-on-invalid-dep=yes",
        *step.command[1:],
    ]


def submit(submission: Submission) -> list[str]:
    """Submit, record in submit.json; returns the ids of the jobs.

    A refused submission leaves the folder as it was: the next may have another configuration.
    Raises ConfigError, or SlurmError with what sbatch said.
    """
    folder = submission.folder
    if submission.alone:
        _refuse_while_queued(folder)
    was_there = folder.exists()
    setup_file = folder / submission.setup_file
    earlier = {path: _content(path) for path in (folder / SUBMITTED, setup_file)}
    if submission.train is not None:
        refuse_misfit(submission.train)
        write_submitted(submission.train)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_aside(setup_file, submission.setup)
    try:
        jobs = _submit_steps(submission.steps)
    except SlurmError:
        for path, content in earlier.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        if not was_there:
            folder.rmdir()
        raise
    entry = {
        "jobs": jobs,
        "submitted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.executable,
        **git_state(),
    }
    write_text_aside(
        folder / "submit.json", json.dumps([*_earlier(folder), entry], indent=1) + "\n"
    )
    return [job["job_id"] for job in jobs]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _submit_steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """All or none: the steps before a refused one are cancelled."""
    jobs: list[dict[str, Any]] = []
    try:
        for step in steps:
            command = _after(step, jobs[-1]["job_id"] if jobs else None)
            job_id = _ask_slurm(command).partition(";")[0].strip()
            jobs.append({"name": step.name, "job_id": job_id, "command": command})
    except SlurmError:
        for job in jobs:
            subprocess.run(["scancel", job["job_id"]], timeout=SLURM_TIMEOUT_S, check=False)
        raise
    return jobs


def git_state() -> dict[str, str | bool | None]:
    """Commit of the code, and whether tracked files differ from it; None outside a git clone."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit.strip(), "git_dirty": bool(changes.strip())}


def _refuse_while_queued(folder: Path) -> None:
    """Two jobs in one run directory would overwrite each other's checkpoints."""
    last = _earlier(folder)[-1:]
    for job_id in [job["job_id"] for entry in last for job in entry["jobs"]]:
        listing = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
        try:
            state = _output(listing).strip()
        except FileNotFoundError as error:
            raise SlurmError("squeue: not found; submit on a login node of the cluster") from error
        except subprocess.CalledProcessError:
            continue  # Slurm has forgotten the job
        except subprocess.TimeoutExpired as error:
            raise SlurmError(f"squeue did not answer within {SLURM_TIMEOUT_S:.0f} s") from error
        if state:
            raise SlurmError(
                f"{folder}: its job {job_id} is {state.split()[0].lower()}; wait for its end or "
                f"stop it with `scancel {job_id}`"
            )


def _ask_slurm(command: list[str]) -> str:
    try:
        return _output(command)
    except FileNotFoundError as error:
        raise SlurmError(
            "sbatch: not found; submit on a login node of the cluster, or see what would be "
            "submitted with --dry-run"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"sbatch did not answer within {SLURM_TIMEOUT_S:.0f} s; see `squeue --me` before you "
            "submit again"
        ) from error
    except subprocess.CalledProcessError as error:
        raise SlurmError(
            f"sbatch refused (code {error.returncode}): {error.stderr.strip()}"
        ) from error


def _output(command: list[str]) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in KEPT_SLURM_VARIABLES
    }
    return subprocess.run(
        command,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=SLURM_TIMEOUT_S,
    ).stdout


def _earlier(folder: Path) -> list[dict[str, Any]]:
    path = folder / "submit.json"
    if not path.exists():
        return []
    try:
        entries = list(json.loads(path.read_bytes()))
        for entry in entries:
            entry["jobs"][0]["job_id"]
    except (ValueError, KeyError, TypeError, LookupError) as error:
        raise SlurmError(
            f"{path}: is damaged ({error!r}), and it names the jobs of this folder: see with "
            "`squeue --me` that none is queued or running, then delete it and submit again"
        ) from error
    return entries


@dataclass(frozen=True, kw_only=True)
class SubmitSettings:
    shards: bool = False
    """Submit a dataset job (the words of data_tools.build, and cluster.*) instead of a training."""
    tasks: str = ""
    """With shards: N, or N%M for at most M at a time, such as 64%16: match, crawl and pack as
    arrays of N tasks. Empty is one job."""
    evaluate: bool = False
    """Submit an evaluation of an earlier run (the words of pipeline.evaluate) instead."""
    dry_run: bool = False
    """Print what would be submitted; submit and write nothing."""


@dataclass(frozen=True, kw_only=True)
class SubmitEvaluationSettings(SubmitSettings, EvaluateSettings):
    """Those of the evaluation too."""


def _check(given: Mapping[str, Any]) -> list[str]:
    problems = check_step(given)
    if given.get("tasks") and given.get("shards") is False:
        problems.append(f"--tasks {given['tasks']}: only a data set is divided; add --shards")
    if given.get("evaluate") and given.get("shards"):
        problems.append("--evaluate --shards: a job is one of them; leave one out")
    return problems


def _command(shards: bool, evaluate: bool = False) -> Command[SubmitSettings]:
    return Command(
        name="slurm.submit",
        purpose="Check and submit a training or, with --shards, a dataset job to Slurm; with "
        "--evaluate, the evaluation of an earlier run. Runs on a login node: needs neither torch "
        "nor a GPU.",
        settings=SubmitEvaluationSettings if evaluate else SubmitSettings,
        example="experiment=vit_b_32 data.manifest=data/mine/manifest.json run_dir=runs/mine "
        "cluster=multi_node cluster.partition=gpu",
        check=_check,
        configuration=configuration(shards),
        refused_by=(ConfigError,),
        failed_by=(SlurmError,),
    )


def main(arguments: list[str]) -> int:
    """Exit code 0 when submitted, 1 when Slurm refused, 2 for a refused command line or
    configuration."""
    command = _command(_asked("shards", arguments), _asked("evaluate", arguments))
    return run(command, arguments, _submit)


def _asked(name: str, arguments: list[str]) -> bool:
    return any(word in (f"--{name}", f"--{name}=true", f"{name}=true") for word in arguments)


def _submission(settings: SubmitSettings, overrides: list[str]) -> Submission:
    if isinstance(settings, SubmitEvaluationSettings):
        return evaluation_submission(overrides, settings)
    if settings.shards:
        return shards_submission(overrides, settings.tasks)
    return training_submission(overrides)


def _submit(settings: SubmitSettings, overrides: list[str]) -> None:
    submission = _submission(settings, overrides)
    if settings.dry_run:
        print(dry_run(submission), end="")
        return
    job_ids = submit(submission)
    if len(job_ids) == 1:
        output = submission.folder / f"slurm-{job_ids[0]}.out"
        print(f"submitted job {job_ids[0]}; its output: {output}")
    else:
        chain = ", ".join(f"{step.name} {i}" for step, i in zip(submission.steps, job_ids))
        print(f"submitted jobs {chain}; their output: {submission.folder / 'slurm-*.out'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

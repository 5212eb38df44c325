"""python -m pipeline.export: the weights of a run as a folder for other libraries.

python -m pipeline.export run_dir=runs/demo out=exported format=huggingface
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.ground.command_line import run
from data_tools.ground.settings import Command
from pipeline.commands import check_step
from pipeline.config import ConfigError
from pipeline.config.frozen import load_frozen
from pipeline.config.validation.outputs import new_folder_problem
from pipeline.engine.checkpoint import CheckpointError, load_model_weights
from pipeline.export import ExportError, export_weights


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    run_dir: Path
    """The folder of the run."""
    out: Path
    """The folder to write."""
    format: Literal["huggingface", "open_clip", "native"]
    """The library that is to read the folder; native is this project's own."""
    step: int | None = None
    """The step of the checkpoint; null is the newest."""
    ema: bool | None = None
    """true exports the average of the weights (train.ema_decay), false the weights; null is the
    average where the run has one."""


def _refuse_folders(run_dir: Path, out: Path) -> None:
    """ConfigError where there is no run, or where nothing can be written."""
    problems = []
    if not (run_dir / "config.yaml").is_file():
        problems.append(
            f"run_dir={run_dir}: {run_dir}/config.yaml is not there; name the folder that a "
            "training wrote"
        )
    problem = new_folder_problem(out)
    if problem:
        problems.append(f"out={out}: {problem}")
    if problems:
        raise ConfigError("the export cannot start:\n  " + "\n  ".join(problems))


COMMAND = Command(
    name="pipeline.export",
    purpose="Write the weights of a run as a folder for other libraries; the folder is read back "
    "and must give the same features before it gets its final name.",
    settings=ExportSettings,
    example="run_dir=runs/demo out=exported format=huggingface",
    check=check_step,
    refused_by=(ConfigError,),
    failed_by=(CheckpointError, ExportError, OSError),
)


def main(arguments: list[str]) -> int:
    """Exit code 0 when the folder is written and was read back with the same features, 1 when it
    could not be, 2 for a refused command line or run configuration."""
    return run(COMMAND, arguments, _export)


def _export(settings: ExportSettings, _: list[str]) -> None:
    _refuse_folders(settings.run_dir, settings.out)
    job = load_frozen(settings.run_dir / "config.yaml")
    weights = load_model_weights(settings.run_dir, settings.step, settings.ema)
    report = export_weights(
        weights,
        job.model,
        settings.out,
        settings.format,
        max_logit_scale=job.loss.max_logit_scale,
    )
    print(f"{settings.out}: {report}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

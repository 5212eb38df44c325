"""python -m pipeline.export run_dir=DIR out=DIR format=huggingface|open_clip|native [step=N]
                          [ema=true|false]

The average of the weights where the run has one (train.ema_decay), else the weights; ema= decides.

Exit code 0 when the folder is written and was read back with the same features, else 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.config.composition import load_frozen
from pipeline.engine.checkpoint import CheckpointError, load_model_weights
from pipeline.export import FORMATS, ExportError, export_weights

_REQUIRED, _OPTIONAL = ("run_dir", "out", "format"), ("step", "ema")


def parse(arguments: list[str]) -> dict[str, str]:
    """`name=value` words; ExportError lists every problem."""
    given, problems = {}, []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name not in _REQUIRED + _OPTIONAL or not equals or not value:
            problems.append(f"{word}: give {', '.join(f'{n}=...' for n in _REQUIRED + _OPTIONAL)}")
        given[name] = value
    problems += [f"{name} is not given: add {name}=..." for name in _REQUIRED if name not in given]
    if "format" in given and given["format"] not in FORMATS:
        problems.append(f"format={given['format']}: give one of {', '.join(FORMATS)}")
    if not given.get("step", "0").isdecimal():
        problems.append(f"step={given['step']}: give the number of a checkpoint's step")
    if given.get("ema", "true") not in ("true", "false"):
        problems.append(f"ema={given['ema']}: give true or false")
    if problems:
        raise ExportError("\n  ".join(["the export cannot start:", *problems]))
    return given


def main(arguments: list[str]) -> int:
    try:
        given = parse(arguments)
        run_dir, out = Path(given["run_dir"]), Path(given["out"])
        job = load_frozen(run_dir / "config.yaml")
        try:
            weights = load_model_weights(
                run_dir,
                int(given["step"]) if "step" in given else None,
                given["ema"] == "true" if "ema" in given else None,
            )
        except CheckpointError as error:
            raise ExportError(str(error)) from error
        report = export_weights(
            weights,
            job.model,
            out,
            given["format"],
            max_logit_scale=job.loss.max_logit_scale,
        )
    except (ConfigError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m pipeline.score: how well each image and caption of a data set fit, by a CLIP model.

python -m pipeline.score model=runs/mine manifest=data/mine/manifest.json
python -m data_tools.subset manifest=data/mine/manifest.json out_dir=data/best keep_share=0.3
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.dataset.manifest import ManifestError, load_manifest
from data_tools.dataset.scores import add_to_ledger, scored_shards
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    model: Path
    """A run directory, a native export, or a Hugging Face CLIP folder."""
    manifest: str
    """manifest.json of the data set; scores/ is written beside it."""
    batch_size: int = 256
    """Pairs that the model takes at once; 1 to 100000."""
    threads: int = 4
    """Threads that read and decode images; 1 to 256."""
    device: str | None = None
    """torch's name of the device, such as cuda:0; null is cuda where there is one, else cpu."""
    task: str = "0/1"
    """I/N with I from 0: one of N processes, each on its own device, scores every N-th shard."""


MOST = {"batch_size": 100_000, "threads": 256}


def _check(given: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name}={given[name]}: give 1 to {most}"
        for name, most in MOST.items()
        if not 1 <= given.get(name, 1) <= most
    ]
    task = given.get("task", "0/1")
    parts = re.fullmatch(r"([0-9]+)/([0-9]+)", task)
    if parts is None or int(parts[1]) >= int(parts[2]):
        problems.append(f"task={task}: give I/N with I from 0 to N - 1, such as 0/8")
    return problems


COMMAND = Command(
    name="pipeline.score",
    purpose="Score how well each image and caption of a data set fit together. Writes scores/ "
    "beside the manifest and, when every shard is scored, the column `score` of the ledger; "
    "`python -m data_tools.subset` then makes a data set of the best part.",
    settings=ScoreSettings,
    example="model=runs/mine manifest=data/mine/manifest.json",
    check=_check,
    # ScoreError and ManifestError are ValueErrors, LoaderError and CUDA's are RuntimeErrors
    failed_by=(ValueError, OSError, RuntimeError),
)


def main(arguments: list[str]) -> int:
    """Exit code 0, 1 for a data set that cannot be scored, 2 for a refused command line."""
    return run(COMMAND, arguments, lambda settings, _: score(settings))


def score(settings: ScoreSettings) -> None:
    """Raises ManifestError, ScoreError, LoaderError and OSError."""
    manifest = load_manifest(settings.manifest)
    # Imported late: torch takes seconds, and a misspelt word shall not take seconds to refuse.
    import torch

    from pipeline.score.pairs import score_shards
    from pipeline.score.scorer import load_scorer

    scorer = load_scorer(settings.model, torch.device(_device(settings.device)))
    index, count = (int(part) for part in settings.task.split("/"))
    counts = score_shards(
        manifest,
        scorer,
        manifest.shards[index::count],
        batch_size=settings.batch_size,
        num_threads=settings.threads,
    )
    summary = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items())
    print(f"{scorer.name}: {summary}", flush=True)
    try:
        scored_shards(manifest)
    except ManifestError as error:
        if count == 1:
            raise
        print(f"the ledger waits for the other tasks: {error}", file=sys.stderr)
        return
    print(f"scores in the ledger: {add_to_ledger(manifest):,}", flush=True)


def _device(asked: str | None) -> str:
    """torch's name of the device; ValueError for one that is not there."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if asked is not None and asked not in there:
        raise ValueError(f"device={asked}: is not on this machine; give {' or '.join(there)}")
    return asked or ("cuda" if gpus else "cpu")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

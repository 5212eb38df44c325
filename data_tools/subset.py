"""python -m data_tools.subset: the best part of a scored data set as a data set of its own.

python -m data_tools.subset manifest=data/mine/manifest.json out_dir=data/best keep_share=0.3
python -m data_tools.subset manifest=data/mine/manifest.json out_dir=data/best min_score=0.28
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.dataset.manifest import ManifestError, load_manifest
from data_tools.dataset.subset import select, write_subset
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command
from data_tools.tables.schema import DataError


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    manifest: str
    """manifest.json of a data set that `python -m pipeline.score` has scored."""
    out_dir: Path
    """A new folder for the subset."""
    keep_share: float | None = None
    """Share of the scored pairs that is kept, the best first: 0 to 1. Give this or min_score."""
    min_score: float | None = None
    """Keep every pair that has at least this score: -1 to 1. Give this or keep_share."""
    samples_per_shard: int = 10000
    """Samples in each new shard; the last one may have fewer."""


def _check(given: Mapping[str, Any]) -> list[str]:
    problems = []
    if (given.get("keep_share", 0) is None) == (given.get("min_score", 0) is None):
        problems.append("give one of keep_share=0.3 and min_score=0.28")
    for name, low, high in (("keep_share", 0.0, 1.0), ("min_score", -1.0, 1.0)):
        value = given.get(name)
        if value is not None and not low <= value <= high:
            problems.append(f"{name}={value:g}: give a number from {low:g} to {high:g}")
    if given.get("samples_per_shard", 1) < 1:
        problems.append(f"samples_per_shard={given['samples_per_shard']}: give at least 1")
    return problems


COMMAND = Command(
    name="data_tools.subset",
    purpose="Cut the best part of a scored data set into a data set of its own: new shards, new "
    "manifest, same order. The ledger goes along, and what was left out has the status "
    '"dropped:score" there. Nothing of the source is changed.',
    settings=SubsetSettings,
    example="manifest=data/mine/manifest.json out_dir=data/best keep_share=0.3",
    check=_check,
    failed_by=(DataError, ManifestError, OSError),
)


def main(arguments: list[str]) -> int:
    """Exit code 0, 2 for a command line that was refused, 1 for a data set that cannot be cut."""
    return run(COMMAND, arguments, _cut)


def _cut(settings: SubsetSettings, _: list[str]) -> None:
    manifest = load_manifest(settings.manifest)
    selection = select(manifest, keep_share=settings.keep_share, min_score=settings.min_score)
    subset = write_subset(manifest, selection, settings.out_dir, settings.samples_per_shard)
    print(
        f"{subset.num_samples:,} of {manifest.num_samples:,} pairs, scores from "
        f"{selection.score:.4f}\nmanifest: {settings.out_dir / 'manifest.json'}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

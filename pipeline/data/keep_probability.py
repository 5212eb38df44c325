"""python -m pipeline.data.keep_probability: the files that data.resample reads.

python -m pipeline.data.keep_probability data/mine/manifest.json
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from data_tools.dataset.manifest import ManifestError
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command
from pipeline.data.faults import LoaderError
from pipeline.data.order.keep_probability import write_keep_probabilities
from pipeline.data.shards.dataset import open_dataset


@dataclass(frozen=True, kw_only=True)
class KeepProbabilitySettings:
    manifest: str
    """Path or URL of a data set's manifest.json; the files are written beside it, in
    keep_probability/."""


COMMAND = Command(
    name="pipeline.data.keep_probability",
    purpose="Read keep_probability of each sample of a data set into two files beside its "
    "manifest, from which data.resample=true draws the samples of each epoch.",
    settings=KeepProbabilitySettings,
    example="data/mine/manifest.json",
    bare_word=True,
    failed_by=(ManifestError, LoaderError, OSError),
)


def main(arguments: list[str]) -> int:
    """Exit code 0, 1 for a data set without probabilities, 2 for a refused command line."""
    return run(COMMAND, arguments, _write)


def _write(settings: KeepProbabilitySettings, _: list[str]) -> None:
    dataset = open_dataset(settings.manifest)
    print(write_keep_probabilities(dataset.manifest, dataset.storage))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

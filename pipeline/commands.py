"""The commands that start ranks, as their --help describes them."""

from __future__ import annotations

from data_tools.ground.settings import Command, NoSettings
from pipeline.config import ConfigError
from pipeline.config.composition import CONFIGURATION

TRAIN = Command(
    name="pipeline.train",
    purpose="Train a CLIP model: compose the configuration and start the ranks of this machine; "
    "once they can train it is run_dir/config.yaml. run_dir=DIR of an earlier run goes on with "
    "that run.",
    settings=NoSettings,
    example="experiment=vit_b_32 data.manifest=data/mine/manifest.json run_dir=runs/mine",
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
)
EVALUATE = Command(
    name="pipeline.evaluate",
    purpose="Score the newest checkpoint of a run on its evaluation sets (zero-shot classification "
    "and retrieval) and write eval/step_N.json and report.html below run_dir.",
    settings=NoSettings,
    example="run_dir=runs/mine",
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
)


def command_of(module: str) -> Command[NoSettings]:
    """The command that `python -m module` is; any other module that starts ranks takes the words
    of pipeline.train."""
    return EVALUATE if module == EVALUATE.name else TRAIN

"""The training job: typed dataclasses behind Hydra groups, composed once, validated, frozen into
the run directory.

The dataclasses hold the defaults; YAML files hold differences only. No torch here: `slurm.submit`
runs this on a login node. No Hydra here either: it takes 0.3 s to import, which each decoding
process of the loader would pay for the dataclasses. Code that composes or reads a job imports
`pipeline.config.composition`.

A `step` is a finished optimizer step; time is counted in steps and in samples, never in epochs.
"""

from pipeline.config.choices import (
    CaptionChoice,
    Compile,
    Exchange,
    LossBackend,
    LossKind,
    Optimizer,
    Precision,
    ReduceDtype,
    Schedule,
    Stem,
    WandbMode,
)
from pipeline.config.loss import LossConfig
from pipeline.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    ColourConfig,
    ConfigError,
    DataConfig,
    DeepSpeedConfig,
    EvalConfig,
    HealthConfig,
    LoggingConfig,
    ModelConfig,
    SourceConfig,
    TextConfig,
    TrainConfig,
    TrainJob,
    VisionConfig,
)

__all__ = [
    "CaptionChoice",
    "CheckpointConfig",
    "ClusterConfig",
    "ColourConfig",
    "Compile",
    "ConfigError",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "Exchange",
    "HealthConfig",
    "LoggingConfig",
    "LossBackend",
    "LossConfig",
    "LossKind",
    "ModelConfig",
    "Optimizer",
    "Precision",
    "ReduceDtype",
    "Schedule",
    "SourceConfig",
    "Stem",
    "TextConfig",
    "TrainConfig",
    "TrainJob",
    "VisionConfig",
    "WandbMode",
]

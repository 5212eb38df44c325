"""The training job: typed dataclasses behind Hydra groups, composed once, validated, frozen into
the run directory.

The dataclasses hold the defaults, YAML files hold differences only. No torch here: `slurm.submit`
runs this on a login node. A `step` is a finished optimizer step; time is counted in steps and in
samples, never in epochs.
"""

from pipeline.config.composition import (
    CONF_DIR,
    freeze,
    job_of_arguments,
    load_cluster,
    load_frozen,
    load_job,
    load_model_config,
    to_yaml,
)
from pipeline.config.schema import (
    CaptionChoice,
    CheckpointConfig,
    ClusterConfig,
    ColourConfig,
    Compile,
    ConfigError,
    DataConfig,
    DeepSpeedConfig,
    EvalConfig,
    HealthConfig,
    LoggingConfig,
    LossConfig,
    LossKind,
    ModelConfig,
    Optimizer,
    Precision,
    Schedule,
    SourceConfig,
    Stem,
    TextConfig,
    TrainConfig,
    TrainJob,
    VisionConfig,
    WandbMode,
)
from pipeline.config.validation import validate

__all__ = [
    "CONF_DIR",
    "CaptionChoice",
    "CheckpointConfig",
    "ClusterConfig",
    "ColourConfig",
    "Compile",
    "ConfigError",
    "DataConfig",
    "DeepSpeedConfig",
    "EvalConfig",
    "HealthConfig",
    "LoggingConfig",
    "LossConfig",
    "LossKind",
    "ModelConfig",
    "Optimizer",
    "Precision",
    "Schedule",
    "SourceConfig",
    "Stem",
    "TextConfig",
    "TrainConfig",
    "TrainJob",
    "VisionConfig",
    "WandbMode",
    "freeze",
    "job_of_arguments",
    "load_cluster",
    "load_frozen",
    "load_job",
    "load_model_config",
    "to_yaml",
    "validate",
]

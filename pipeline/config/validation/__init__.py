"""What a job can be wrong about, told all at once: each line names field, value and fix.

No torch, no device, no network: it runs where the job is submitted.
"""

from __future__ import annotations

from pipeline.config.schema import TrainJob
from pipeline.config.validation.data import validate_data
from pipeline.config.validation.model import validate_model
from pipeline.config.validation.outputs import validate_outputs
from pipeline.config.validation.ranges import validate_ranges
from pipeline.config.validation.training import validate_training


def validate(job: TrainJob) -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start."""
    return [
        *validate_outputs(job),
        *validate_data(job),
        *validate_ranges(job),
        *validate_training(job),
        *validate_model(job.model),
    ]

"""Every problem of a job at once: each line names field, value and fix.

Bounds of single values stand beside the fields (pipeline/config/schema.py); the modules here hold
the rules that join several fields, or look at files and packages. No torch, no device, no network:
this runs where the job is submitted.
"""

from __future__ import annotations

from data_tools.ground.fields import out_of_bounds
from pipeline.config.schema import TrainJob
from pipeline.config.validation.batch import validate_batch
from pipeline.config.validation.data import validate_data
from pipeline.config.validation.loss import validate_loss
from pipeline.config.validation.model import validate_model
from pipeline.config.validation.outputs import validate_outputs
from pipeline.config.validation.resumption import validate_resumption
from pipeline.config.validation.training import validate_training


def validate(job: TrainJob, kept: TrainJob | None = None) -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start.

    kept: the configuration of the run in run_dir, where one is there to go on with. What that run
    was begun with, under the rules of its day, is not judged again in `model` and `loss`.
    """
    same_model = kept is not None and kept.model == job.model
    same_loss = kept is not None and kept.loss == job.loss
    begun = [name for name, same in (("model", same_model), ("loss", same_loss)) if same]
    return [
        *validate_outputs(job),
        *validate_data(job),
        *validate_training(job),
        *validate_batch(job, kept),
        *(validate_resumption(job, kept) if kept is not None else []),
        *([] if same_loss else validate_loss(job, begins=kept is None)),
        *([] if same_model else validate_model(job.model)),
        *out_of_bounds(job, without=begun),
    ]

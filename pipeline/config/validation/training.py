"""Rules for schedule and optimizer, and for what DeepSpeed can do with them."""

from __future__ import annotations

from pipeline.config.choices import Optimizer, Precision, Schedule
from pipeline.config.schema import TrainConfig, TrainJob


def validate_training(job: TrainJob) -> list[str]:
    return [
        *_schedule(job.train),
        *_learning_rates(job.train),
        *_lamb(job),
    ]


def _schedule(train: TrainConfig) -> list[str]:
    problems = []
    if train.warmup_steps >= train.steps and train.warmup_steps > 0:
        problems.append(
            f"train.warmup_steps = {train.warmup_steps}: warm-up would not end before train.steps "
            f"= {train.steps}; give fewer, or 0"
        )
    longest = max(1, train.steps - train.warmup_steps)
    if train.schedule is Schedule.wsd and not 0 < train.cooldown_steps <= longest:
        problems.append(
            f"train.cooldown_steps = {train.cooldown_steps}: schedule=wsd falls to zero over its "
            f"last steps, after warm-up; give 1 to {longest}, or another schedule"
        )
    if train.schedule is not Schedule.wsd and train.cooldown_steps > 0:
        problems.append(
            f"train.cooldown_steps = {train.cooldown_steps}: schedule={train.schedule.value} falls "
            f"from the end of warm-up on; give 0, or schedule=wsd"
        )
    return problems


def _learning_rates(train: TrainConfig) -> list[str]:
    if train.image_lr_scale > 0 or train.text_lr_scale > 0:
        return []
    return [
        "train.image_lr_scale = train.text_lr_scale = 0: both towers are frozen; give one of them "
        "more than 0"
    ]


def _lamb(job: TrainJob) -> list[str]:
    """LAMB needs the norm of each whole parameter, summed over ranks on the device: see
    pipeline/engine/lamb.py."""
    if job.train.optimizer is not Optimizer.lamb:
        return []
    problems = []
    if job.deepspeed.zero_stage == 3:
        problems.append(
            "deepspeed.zero_stage = 3: train.optimizer=lamb knows where stages 1 and 2 put the "
            "fragments of a parameter, whose norm it needs; give one of them, or optimizer=adamw"
        )
    if job.deepspeed.offload_optimizer:
        problems.append(
            "deepspeed.offload_optimizer = true: train.optimizer=lamb sums norms over ranks on the "
            "device, and its weights would be in host memory; give false, or optimizer=adamw"
        )
    if job.train.precision is Precision.fp16:
        problems.append(
            "train.precision = fp16: train.optimizer=lamb is not tested under a loss scale; give "
            "bf16, or optimizer=adamw"
        )
    return problems

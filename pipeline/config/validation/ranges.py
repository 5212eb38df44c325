"""Numbers that have a lowest value, must be positive, or are shares."""

from __future__ import annotations

import math

from pipeline.config.schema import TrainJob


def validate_ranges(job: TrainJob) -> list[str]:
    # `not >=` and `not >`: a NaN passes neither
    problems = [
        f"{name} = {value}: must be >= {low}"
        for name, value, low in _lowest(job)
        if not low <= value < math.inf
    ]
    problems += [
        f"{name} = {value}: must be > 0"
        for name, value in _positive(job)
        if not 0 < value < math.inf
    ]
    problems += [
        f"{name} = {value}: a share {what}, give 0 to 1"
        for name, value, what in _shares(job)
        if not 0 <= value <= 1
    ]
    return problems + [
        f"{name} = {value}: a share {what}, give 0 or more, and less than 1"
        for name, value, what in _shares_below_1(job)
        if not 0 <= value < 1
    ]


def _lowest(job: TrainJob) -> list[tuple[str, float, int]]:
    train, data, model = job.train, job.data, job.model
    return [
        ("model.embed_dim", model.embed_dim, 1),
        ("model.image_size", model.image_size, 1),
        ("model.vision.patch_size", model.vision.patch_size, 1),
        ("model.vision.width", model.vision.width, 1),
        ("model.vision.num_layers", model.vision.num_layers, 1),
        ("model.vision.num_heads", model.vision.num_heads, 1),
        ("model.text.width", model.text.width, 1),
        ("model.text.num_layers", model.text.num_layers, 1),
        ("model.text.num_heads", model.text.num_heads, 1),
        ("train.steps", train.steps, 1),
        ("train.global_batch_size", train.global_batch_size, 2),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.cooldown_steps", train.cooldown_steps, 0),
        ("train.image_micro_batch_size", train.image_micro_batch_size, 0),
        ("train.text_micro_batch_size", train.text_micro_batch_size, 0),
        ("train.image_lr_scale", train.image_lr_scale, 0),
        ("train.text_lr_scale", train.text_lr_scale, 0),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.threads_per_rank", train.threads_per_rank, 0),
        ("deepspeed.reduce_bucket_size", job.deepspeed.reduce_bucket_size, 1),
        ("deepspeed.allgather_bucket_size", job.deepspeed.allgather_bucket_size, 1),
        ("checkpoint.every_steps", job.checkpoint.every_steps, 1),
        ("checkpoint.every_minutes", job.checkpoint.every_minutes, 0),
        ("checkpoint.kept", job.checkpoint.kept, 1),
        ("health.max_skipped_in_a_row", job.health.max_skipped_in_a_row, 1),
        ("health.loss_spike", job.health.loss_spike, 0),
        ("health.max_rollbacks", job.health.max_rollbacks, 0),
        ("data.chunk_size", data.chunk_size, 1),
        ("data.num_workers", data.num_workers, 1),
        ("data.prefetch_batches", data.prefetch_batches, 1),
        ("eval.every_steps", job.eval.every_steps, 0),
        ("eval.batch_size", job.eval.batch_size, 1),
        ("logging.every_steps", job.logging.every_steps, 1),
        ("cluster.nodes", job.cluster.nodes, 1),
        ("cluster.ranks_per_node", job.cluster.ranks_per_node, 1),
        ("cluster.gpus_per_node", job.cluster.gpus_per_node, 0),
    ]


def _positive(job: TrainJob) -> list[tuple[str, float]]:
    return [
        ("train.lr", job.train.lr),
        ("train.eps", job.train.eps),
        ("train.grad_clip_norm", job.train.grad_clip_norm),
        ("health.stall_minutes", job.health.stall_minutes),
        ("cluster.timeout_minutes", job.cluster.timeout_minutes),
    ]


def _shares(job: TrainJob) -> list[tuple[str, float, str]]:
    data, colour = job.data, job.data.colour
    return [
        ("data.crop_scale_min", data.crop_scale_min, "of the image's area"),
        ("data.max_bad_fraction", data.max_bad_fraction, "of the samples read"),
        ("data.caption_dropout", data.caption_dropout, "of the samples"),
        ("data.colour.jitter_probability", colour.jitter_probability, "of the samples"),
        ("data.colour.grayscale_probability", colour.grayscale_probability, "of the samples"),
        ("data.colour.brightness", colour.brightness, "around a factor of 1"),
        ("data.colour.contrast", colour.contrast, "around a factor of 1"),
        ("data.colour.saturation", colour.saturation, "around a factor of 1"),
        ("data.colour.hue", colour.hue, "of the circle of hues"),
    ]


def _shares_below_1(job: TrainJob) -> list[tuple[str, float, str]]:
    """Of these, 1 would leave nothing, or let nothing ever change."""
    train = job.train
    return [
        ("train.ema_decay", train.ema_decay, "of the average that stays at each step"),
        ("train.beta1", train.beta1, "of the mean gradient that stays at each step"),
        ("train.beta2", train.beta2, "of the mean square that stays at each step"),
        ("model.dropout", job.model.dropout, "of the activations"),
        ("model.vision.patch_dropout", job.model.vision.patch_dropout, "of the patches"),
    ]

"""What a job can be wrong about, told all at once."""

from __future__ import annotations

import os

from pipeline.config.schema import DataConfig, ModelConfig, Stem, TrainJob


def validate(job: TrainJob) -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start."""
    problems = []
    if not job.run_dir:
        problems.append("run_dir is not given: add run_dir=runs/NAME")
    elif os.path.exists(job.run_dir) and not os.path.isdir(job.run_dir):
        problems.append(f"run_dir = {job.run_dir}: is a file; name a folder")
    problems += _validate_sources(job.data)
    for folder in job.eval.datasets:
        if not os.path.isdir(folder):
            problems.append(f"eval.datasets: {folder} is no folder; correct or remove it")
    problems += _validate_ranges(job) + _validate_shares(job.data) + _validate_choices(job)
    return problems + _validate_batch(job) + _validate_model(job.model)


def _validate_sources(data: DataConfig) -> list[str]:
    given = [
        name
        for name in ("manifest", "mixture", "stream")
        if getattr(data, name)  # one of the three
    ]
    if not given:
        return [
            "data.manifest is not given: add data.manifest=DIR/manifest.json (made by `make "
            "shards`)"
        ]
    problems = []
    if len(given) > 1:
        problems.append(
            " and ".join(f"data.{name}" for name in given) + " are given: they exclude each other; "
            "a data set more goes into data.mixture"
        )
    manifests = [("data.manifest", data.manifest)] if data.manifest else []
    for number, source in enumerate(data.mixture):
        manifests.append((f"data.mixture[{number}].manifest", source.manifest))
        if not source.weight > 0:
            problems.append(
                f"data.mixture[{number}].weight = {source.weight}: must be > 0; leave the data "
                f"set out instead"
            )
    problems += [
        f"{name} = {path}: no such file; `make shards` writes it"
        for name, path in manifests
        if "://" not in path and not os.path.isfile(path)
    ]
    if data.stream and data.resample:
        problems.append("data.resample = true: a stream has no index to draw from; give a manifest")
    return problems


def _validate_ranges(job: TrainJob) -> list[str]:
    train, data = job.train, job.data
    lowest = [
        ("train.steps", train.steps, 1),
        ("train.global_batch_size", train.global_batch_size, 2),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.checkpoint_every_steps", train.checkpoint_every_steps, 1),
        ("train.checkpoints_kept", train.checkpoints_kept, 1),
        ("train.threads_per_rank", train.threads_per_rank, 0),
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
    problems = [f"{name} = {value}: must be >= {low}" for name, value, low in lowest if value < low]
    positive = [
        ("train.lr", train.lr),
        ("train.eps", train.eps),
        ("train.grad_clip_norm", train.grad_clip_norm),
        ("cluster.timeout_minutes", job.cluster.timeout_minutes),
    ]
    return problems + [
        f"{name} = {value}: must be > 0" for name, value in positive if not value > 0
    ]


def _validate_shares(data: DataConfig) -> list[str]:
    shares = [
        ("data.crop_scale_min", data.crop_scale_min, "of the image's area"),
        ("data.max_bad_fraction", data.max_bad_fraction, "of the samples read"),
        ("data.caption_dropout", data.caption_dropout, "of the samples"),
        ("data.colour.jitter_probability", data.colour.jitter_probability, "of the samples"),
        ("data.colour.grayscale_probability", data.colour.grayscale_probability, "of the samples"),
        ("data.colour.brightness", data.colour.brightness, "around a factor of 1"),
        ("data.colour.contrast", data.colour.contrast, "around a factor of 1"),
        ("data.colour.saturation", data.colour.saturation, "around a factor of 1"),
        ("data.colour.hue", data.colour.hue, "of the circle of hues"),
    ]
    return [
        f"{name} = {value}: a share {what}, give 0 to 1"
        for name, value, what in shares
        if not 0 <= value <= 1
    ]


def _validate_choices(job: TrainJob) -> list[str]:
    train, problems = job.train, []
    if train.warmup_steps >= train.steps and train.warmup_steps > 0:
        problems.append(
            f"train.warmup_steps = {train.warmup_steps}: warm-up would not end before train.steps "
            f"= {train.steps}; "
            "give fewer, or 0"
        )
    if job.deepspeed.zero_stage not in (1, 2, 3):
        problems.append(
            f"deepspeed.zero_stage = {job.deepspeed.zero_stage}: give 1, 2 or 3 (stage 0 applies "
            f"NaN gradients to the "
            "weights and reports no gradient norm; stage 1 costs nothing on one device)"
        )
    if not 0 < job.loss.init_logit_scale <= job.loss.max_logit_scale:
        problems.append(
            f"loss.init_logit_scale = {job.loss.init_logit_scale}: must be > 0 and <= "
            f"loss.max_logit_scale = "
            f"{job.loss.max_logit_scale} (both are logarithms: ln(1/0.07) = 2.66, ln(100) = 4.61)"
        )
    return problems


def _validate_batch(job: TrainJob) -> list[str]:
    world_size, batch = job.world_size, job.train.global_batch_size
    if world_size < 1 or batch % world_size == 0:
        return []
    lower, upper = batch // world_size * world_size, -(-batch // world_size) * world_size
    return [
        f"train.global_batch_size = {batch}: is not divisible by {world_size} ranks "
        f"(cluster.nodes = "
        f"{job.cluster.nodes} x cluster.ranks_per_node = {job.cluster.ranks_per_node}); give "
        f"{lower or upper} or {upper}"
    ]


def _validate_model(model: ModelConfig) -> list[str]:
    problems = []
    for name, tower in (("vision", model.vision), ("text", model.text)):
        if tower.width % tower.num_heads:
            problems.append(
                f"model.{name}.width = {tower.width}: is not divisible by model.{name}.num_heads "
                f"= {tower.num_heads}"
            )
    if model.image_size % model.vision.patch_size:
        problems.append(
            f"model.image_size = {model.image_size}: is not divisible by model.vision.patch_size = "
            f"{model.vision.patch_size}"
        )
    if model.vision.stem is Stem.conv and model.vision.patch_size != 8:
        problems.append(
            f"model.vision.patch_size = {model.vision.patch_size}: the conv stem has stride 8; "
            f"give 8 or stem=patch"
        )
    if not 3 <= model.text.context_length <= 77:
        problems.append(f"model.text.context_length = {model.text.context_length}: give 3 to 77")
    return problems

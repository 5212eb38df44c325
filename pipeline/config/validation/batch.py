"""Rules for how ranks share the global batch. Every value that is offered here is accepted."""

from __future__ import annotations

import math

from pipeline.config.schema import TrainJob
from pipeline.config.validation.data import num_samples_of
from pipeline.config.validation.numbers import either, nearest_divisors, nearest_multiples

MICRO_BATCHES = ("image_micro_batch_size", "text_micro_batch_size")


def validate_batch(job: TrainJob, kept: TrainJob | None) -> list[str]:
    """`kept`: the run in run_dir, whose global batch stays."""
    world_size, batch = job.world_size, job.train.global_batch_size
    if world_size < 1 or batch < 1:
        return []  # out of bounds
    ranks = (
        f"cluster.nodes = {job.cluster.nodes} x cluster.ranks_per_node = "
        f"{job.cluster.ranks_per_node}"
    )
    too_large = _enough_samples(job)
    if too_large:
        return too_large
    if batch % world_size:
        stays = "" if kept is None else ", and a run keeps its global batch"
        return [
            f"train.global_batch_size = {batch}: is not divisible by {world_size} ranks ({ranks})"
            f"{stays}; give {_offers(job, kept)}"
        ]
    share = batch // world_size
    problems = []
    for name in MICRO_BATCHES:
        size: int | None = getattr(job.train, name)
        if size is not None and size > 0 and share % size:
            problems.append(
                f"train.{name} = {size}: does not divide the {share} samples of a rank "
                f"(train.global_batch_size = {batch}, {ranks}); give "
                f"{either(nearest_divisors(share, size))}, or null for all at once"
            )
    return problems


def _enough_samples(job: TrainJob) -> list[str]:
    """A batch is filled from one epoch."""
    batch, num_samples = job.train.global_batch_size, num_samples_of(job.data)
    if num_samples is None or batch <= num_samples:
        return []
    step = job.world_size * _micro_batch(job)
    most = num_samples // step * step
    advice = f"give at most {most}" if most > 1 else "give more data, or fewer ranks"
    return [
        f"train.global_batch_size = {batch}: the data set {job.data.manifest} has {num_samples} "
        f"samples, fewer than one batch; {advice}"
    ]


def _offers(job: TrainJob, kept: TrainJob | None) -> str:
    """Global batches and ranks per node that fit the rest of the job; for a run that goes on, ranks
    alone."""
    batches = [] if kept is not None else _batches(job)
    ranks = _ranks(job)
    offers = [either(batches)] if batches else []
    if ranks:
        offers.append(" or ".join(_cluster_words(job, number) for number in ranks))
    if not ranks and kept is not None:
        offers.append(
            f"cluster.nodes={kept.cluster.nodes} cluster.ranks_per_node="
            f"{kept.cluster.ranks_per_node} as before"
        )
    return ", or ".join(offers) or "fewer nodes or ranks, or more data"


def _micro_batch(job: TrainJob) -> int:
    """What a rank's share must be divisible by."""
    sizes = [getattr(job.train, name) for name in MICRO_BATCHES]
    return math.lcm(*(size for size in sizes if size is not None and size > 0))


def _batches(job: TrainJob) -> list[int]:
    near = nearest_multiples(job.train.global_batch_size, job.world_size * _micro_batch(job))
    num_samples = num_samples_of(job.data)
    return [number for number in near if number >= 2 and number <= (num_samples or number)]


def _ranks(job: TrainJob) -> list[int]:
    """The nearest numbers of ranks per node, below and above."""
    batch, nodes, micro = job.train.global_batch_size, job.cluster.nodes, _micro_batch(job)
    fitting = [
        number
        for number in range(1, min(batch // nodes, 1024) + 1)
        if batch % (nodes * number) == 0 and batch // (nodes * number) % micro == 0
    ]
    asked = job.cluster.ranks_per_node
    below = [number for number in fitting if number < asked][-1:]
    return below + [number for number in fitting if number > asked][:1]


def _cluster_words(job: TrainJob, ranks_per_node: int) -> str:
    """Slurm is asked for as many GPUs as there are ranks."""
    gpus = f" cluster.gpus_per_node={ranks_per_node}" if job.cluster.gpus_per_node else ""
    return f"cluster.ranks_per_node={ranks_per_node}{gpus}"

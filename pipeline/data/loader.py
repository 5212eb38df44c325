"""Manifests -> batches in the run's order, read by index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.config import DataConfig
from pipeline.data.ahead import Loader, RankShare
from pipeline.data.batch import Batch, BatchWork
from pipeline.data.dataset import DataSet, open_dataset
from pipeline.data.faults import LoaderError, SampleError
from pipeline.data.keep_probability import KeepProbabilities, ResampledOrder
from pipeline.data.mixture import MixtureOrder, Source
from pipeline.data.order import Order, SampleOrder
from pipeline.data.sample import SampleSource
from pipeline.data.stream import StreamLoader


class TrainLoader(Loader):
    """The position asked for is its only state: `batches(samples_seen)` gives the same batches,
    pixels included, whatever the number of ranks and workers and wherever the run was cut; nothing
    before it is read.
    """

    def __init__(
        self, datasets: Sequence[DataSet], config: DataConfig, share: RankShare, seed: int
    ) -> None:
        """`datasets` are config.manifest's, or those of config.mixture in its order. Raises
        LoaderError for sizes that do not fit, or a first shard without its pairs.
        """
        self._order = _order_of(datasets, config, share.global_batch_size, seed)
        self.num_samples = self._order.num_samples
        self.fingerprint = _fingerprint(datasets, config)
        self._source = SampleSource(
            datasets,
            config,
            image_size=share.image_size,
            num_lanes=share.batch_size,
            seed=seed,
        )
        self._source.check_first_shards(config.max_bad_fraction)
        super().__init__(config, share)

    def batches(self, samples_seen: int, device: torch.device | None = None) -> Iterator[Batch]:
        # Refuses a wrong position now, not at the first batch.
        self._order.batch(samples_seen, 0, 1)
        return self._iterate(samples_seen, device)

    def close(self) -> None:
        super().close()
        self._source.close()

    def _samples(self, position: int) -> list[int]:
        stop = self._share.first_lane + self._share.batch_size
        samples: list[int] = self._order.batch(position, self._share.first_lane, stop).tolist()
        return samples

    def _load(self, work: BatchWork, slot: int) -> tuple[str, str]:
        """A sample that cannot be used is replaced by the next of its lane that can: one global
        batch further on in the order, so every number of ranks and workers takes the same one.
        """
        position, sample = work.first_position + slot, work.samples[slot]
        # Twice the chunk: where a whole shard is broken the lane has then moved on to another one.
        num_tries = 2 * self._order.chunk_size + 8
        for number in range(1, num_tries + 1):
            try:
                return self._source.load(sample, position, work.pixels[slot])
            except SampleError as error:
                work.faults.setdefault(slot, error)
                later = position + number * self._share.global_batch_size
                sample = int(self._order.samples(np.array([later]))[0])
        raise LoaderError(
            f"{num_tries} samples of a lane in a row cannot be used, the first: {work.faults[slot]}"
        )


def build_train_loader(
    config: DataConfig,
    *,
    image_size: int,
    context_length: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
) -> Loader:
    """The loader of one rank. Every problem that can be seen at start is raised here, on the rank
    whose share of the shards it is in.

    Raises ManifestError (shard missing or truncated) or LoaderError (sizes, no captions).
    """
    share = RankShare(
        image_size=image_size,
        context_length=context_length,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
    )
    if config.stream:
        return StreamLoader(config, share, seed)
    manifests = [source.manifest for source in config.mixture] or [config.manifest]
    datasets = [open_dataset(manifest, rank, world_size) for manifest in manifests]
    return TrainLoader(datasets, config, share, seed)


def _order_of(
    datasets: Sequence[DataSet], config: DataConfig, global_batch_size: int, seed: int
) -> Order:
    if not config.mixture:
        return _order_of_one(datasets[0], config, global_batch_size, seed)
    total = sum(source.weight for source in config.mixture)
    sources, first_sample = [], 0
    for number, (dataset, source) in enumerate(zip(datasets, config.mixture)):
        share = source.weight / total
        # As many lanes as the source has places in a batch; a small one that is up-sampled beyond
        # its size has a lane a sample.
        num_lanes = min(max(1, round(share * global_batch_size)), max(1, dataset.num_samples))
        # Sources of one seed, of equal sizes, would go through their samples in step.
        order = _order_of_one(dataset, config, num_lanes, seed + (number << 32))
        sources.append(Source(order, share, first_sample))
        first_sample += dataset.num_samples
    return MixtureOrder(sources, global_batch_size=global_batch_size)


def _order_of_one(dataset: DataSet, config: DataConfig, num_lanes: int, seed: int) -> Order:
    keep = KeepProbabilities(dataset.manifest) if config.resample else None
    num_samples = dataset.num_samples if keep is None else keep.num_kept
    if num_samples < num_lanes:
        what = "samples" if keep is None else "samples in an epoch (the sum of keep_probability)"
        raise LoaderError(
            f"the data set {dataset.name} has {num_samples} {what}, fewer than one global batch of "
            f"{num_lanes}: train.global_batch_size can be {num_samples} at most"
        )
    if keep is not None:
        return ResampledOrder(
            keep, chunk_size=config.chunk_size, global_batch_size=num_lanes, seed=seed
        )
    return SampleOrder(
        num_samples, chunk_size=config.chunk_size, global_batch_size=num_lanes, seed=seed
    )


def _fingerprint(datasets: Sequence[DataSet], config: DataConfig) -> str:
    """Of a single data set its manifest's, so that runs of earlier versions go on."""
    parts = [dataset.manifest.fingerprint for dataset in datasets]
    if not config.mixture and not config.resample:
        return parts[0]
    weights = [source.weight for source in config.mixture]
    text = repr((parts, weights, config.resample))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

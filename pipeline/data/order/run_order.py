"""The order of a run, from its data sets and options, and the fingerprint of both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.config import DataConfig
from pipeline.data.faults import LoaderError
from pipeline.data.order.keep_probability import KeepProbabilities, ResampledOrder
from pipeline.data.order.mixture import MixtureOrder, Source
from pipeline.data.order.sample_order import Order, SampleOrder
from pipeline.data.shards.dataset import DataSet


def run_order(
    datasets: Sequence[DataSet], config: DataConfig, global_batch_size: int, seed: int
) -> Order:
    """`datasets` are config.manifest's, or those of config.mixture in its order. Raises LoaderError
    for a data set that does not fill its share of a global batch.
    """
    if not config.mixture:
        return _order_of_one(datasets[0], config, global_batch_size, seed)
    total = sum(source.weight for source in config.mixture)
    sources, first_sample = [], 0
    for number, (dataset, source) in enumerate(zip(datasets, config.mixture)):
        share = source.weight / total
        # A source gets as many lanes as it has places in a batch, but at most one per sample: a
        # small source with a large weight can have more places than samples.
        num_lanes = min(max(1, round(share * global_batch_size)), max(1, dataset.num_samples))
        # With one seed for all, sources of equal size would visit their samples in the same order.
        order = _order_of_one(dataset, config, num_lanes, seed + (number << 32))
        sources.append(Source(order, share, first_sample))
        first_sample += dataset.num_samples
    return MixtureOrder(sources, global_batch_size=global_batch_size)


def run_fingerprint(datasets: Sequence[DataSet], config: DataConfig) -> str:
    """Fingerprint of the data sets, weights and resampling. For one data set without resampling it
    is the manifest's fingerprint, so that older checkpoints still resume."""
    parts = [dataset.manifest.fingerprint for dataset in datasets]
    if not config.mixture and not config.resample:
        return parts[0]
    weights = [source.weight for source in config.mixture]
    text = repr((parts, weights, config.resample))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _order_of_one(dataset: DataSet, config: DataConfig, num_lanes: int, seed: int) -> Order:
    keep = KeepProbabilities(dataset.manifest, dataset.storage) if config.resample else None
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

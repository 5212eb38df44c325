"""Manifests -> batches in the run's order, read by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from pipeline.config import DataConfig
from pipeline.data.batches.batch import Batch
from pipeline.data.batches.lanes import LanePlan
from pipeline.data.batches.prefetch import Loader, WorkerPool
from pipeline.data.batches.processes import ProcessWorkerPool, WorkerProcesses
from pipeline.data.batches.slots import RankShare
from pipeline.data.batches.threads import ThreadWorkerPool
from pipeline.data.order.run_order import run_fingerprint, run_order
from pipeline.data.shards.dataset import DataSet, open_dataset
from pipeline.data.stream import StreamLoader


class TrainLoader(Loader):
    """Loads the samples of data sets with indices. Its only state is the position: `batches(p)`
    gives the same batches, pixels included, for any number of ranks and workers and wherever the
    run was interrupted; nothing before p is read.
    """

    def __init__(
        self,
        datasets: Sequence[DataSet],
        config: DataConfig,
        share: RankShare,
        seed: int,
        workers: WorkerProcesses | None,
    ) -> None:
        """`datasets`: that of config.manifest, or those of config.mixture in the same order.
        `workers`: processes that `close` ends, or None for one thread.
        Raises LoaderError for sizes that do not fit, or a first shard without images or captions.
        """
        super().__init__(config, share)
        self._order = run_order(datasets, config, share.global_batch_size, seed)
        self.num_samples = self._order.num_samples
        self.fingerprint = run_fingerprint(datasets, config)
        plan = LanePlan(self._order, list(datasets), config, share, seed)
        self._lanes = plan.open()
        self._lanes.check_first_shards(config.max_bad_fraction)
        self._pool = self._make_pool(plan, workers)

    def batches(self, samples_seen: int, device: torch.device | None = None) -> Iterator[Batch]:
        # Refuses a wrong position now, not at the first batch.
        self._order.batch(samples_seen, 0, 1)
        return self._iterate(samples_seen, device)

    def close(self) -> None:
        super().close()
        self._lanes.close()

    def _make_pool(self, plan: LanePlan, workers: WorkerProcesses | None) -> WorkerPool:
        return (
            ProcessWorkerPool(plan, workers)
            if workers
            else ThreadWorkerPool(self._lanes, plan.share, 1)
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
    """Build the loader of one rank. Problems that can be seen at start are raised here, on the rank
    that checks the shard in question.

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
    with ExitStack() as on_failure:
        workers = None
        # One worker is a thread of this process; several are processes, because threads wait for
        # each other at the interpreter lock.
        if config.num_workers > 1:
            workers = WorkerProcesses(config.num_workers, share.batch_size)
            on_failure.callback(workers.kill)
        datasets = [open_dataset(manifest, rank, world_size) for manifest in manifests]
        loader = TrainLoader(datasets, config, share, seed, workers)
        on_failure.pop_all()
    return loader

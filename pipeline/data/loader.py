"""Manifest -> batches in the run's order, decoded by threads ahead of the training step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import xxhash

from data_tools.manifest import Manifest, load_manifest
from pipeline.config import DataConfig
from pipeline.data.batch import Batch, BatchWork
from pipeline.data.faults import FaultLog, LoaderError, SampleError
from pipeline.data.order import SampleOrder
from pipeline.data.sample import SampleSource
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.workers import WorkerPool

# Eight samples are 5 ms of work: beside it the queue costs nothing, and a batch is shared evenly.
_SAMPLES_PER_TASK = 8
# Storage that gives not one sample for this long is taken for dead.
_STALL_TIMEOUT_S = 300.0
_POLL_S = 0.5


class TrainLoader:
    """Endless batches from any position of the order; `close()`, or `with`, ends its threads.

    The position asked for is its only state: `batches(samples_seen)` gives the same batches,
    pixels included, whatever the number of ranks and workers and wherever the run was cut.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: DataConfig,
        *,
        image_size: int,
        context_length: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        """Raises LoaderError for sizes that do not fit, or a first shard without its pairs."""
        _check_sizes(manifest, config, global_batch_size, rank, world_size)
        self.num_samples = manifest.num_samples
        self.fingerprint = manifest.fingerprint
        self.faults = FaultLog(config.max_bad_fraction)
        self._prefetch_batches = config.prefetch_batches
        self._image_size = image_size
        self._local_batch_size = global_batch_size // world_size
        self._first_lane = rank * self._local_batch_size
        self._order = SampleOrder(
            manifest.num_samples,
            chunk_size=config.chunk_size,
            global_batch_size=global_batch_size,
            seed=seed,
        )
        self._source = SampleSource(
            manifest, image_size=image_size, crop_scale_min=config.crop_scale_min, seed=seed
        )
        self._source.index.check_first_shard(config.max_bad_fraction)
        self._tokenizer = Tokenizer(context_length)
        self._pin = torch.cuda.is_available()
        self._pool = WorkerPool(config.num_workers, "loader")

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Batches from position `samples_seen` of the run on, for ever; nothing before it is read.

        Raises ValueError if `samples_seen` is not a multiple of the global batch size; while
        iterating, LoaderError when too many samples are bad, when storage stalls or after close().
        """
        self._order.batch(
            samples_seen, 0, 1
        )  # refuses a wrong position now, not at the first batch
        return self._iterate(samples_seen)

    def close(self) -> None:
        """End the threads and close the files; whoever waits for a batch gets a LoaderError."""
        self._pool.close()
        self._source.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _iterate(self, position: int) -> Iterator[Batch]:
        ahead: deque[BatchWork] = deque()
        try:
            while True:
                while len(ahead) <= self._prefetch_batches:
                    ahead.append(self._start(position))
                    position += self._order.global_batch_size
                work = ahead.popleft()
                self._wait(work)
                self.faults.record(
                    len(work.samples), [work.faults[slot] for slot in sorted(work.faults)]
                )
                yield work.take()
        finally:
            for work in ahead:
                work.cancelled = True

    def _start(self, samples_seen: int) -> BatchWork:
        """Hand this rank's share of a global batch to the threads."""
        stop = self._first_lane + self._local_batch_size
        work = BatchWork(
            samples_seen + self._first_lane,
            self._order.batch(samples_seen, self._first_lane, stop).tolist(),
            image_size=self._image_size,
            context_length=self._tokenizer.context_length,
            pin=self._pin,
        )
        for first in range(0, self._local_batch_size, _SAMPLES_PER_TASK):
            slots = range(first, min(first + _SAMPLES_PER_TASK, self._local_batch_size))
            self._pool.submit(partial(self._fill, work, slots))
        return work

    def _wait(self, work: BatchWork) -> None:
        num_pending, since = work.num_pending, time.monotonic()
        while not work.wait(_POLL_S):
            if self._pool.closed:
                raise LoaderError("the loader is closed")
            if work.num_pending != num_pending:
                num_pending, since = work.num_pending, time.monotonic()
            elif time.monotonic() - since > _STALL_TIMEOUT_S:
                raise LoaderError(
                    f"not one sample was read for {_STALL_TIMEOUT_S:.0f} s ({num_pending} are "
                    f"outstanding from position {work.first_position} on): does the storage answer?"
                )

    def _fill(self, work: BatchWork, slots: range) -> None:
        """Runs in a thread: read, decode and tokenize some slots of a batch."""
        try:
            captions = []
            for slot in slots:
                if work.cancelled or self._pool.closed:
                    return
                captions.append(self._fill_slot(work, slot))
            work.tokens[slots.start : slots.stop] = self._tokenizer.encode_cleaned(captions)
            work.done(len(slots))
        except BaseException as error:  # noqa: B036 - raised again in the consumer, by `take`
            work.fail(error)

    def _fill_slot(self, work: BatchWork, slot: int) -> str:
        """Image, key and caption id of one slot; returns its cleaned caption.

        A sample that cannot be used is replaced by the next of its lane that can: one global batch
        further on in the order, so every number of ranks and workers takes the same one.
        """
        position, sample = work.first_position + slot, work.samples[slot]
        # Twice the chunk: where a whole shard is broken the lane has then moved on to another one.
        num_tries = 2 * self._order.chunk_size + 8
        for number in range(1, num_tries + 1):
            try:
                key, caption = self._source.load(sample, position, work.pixels[slot])
            except SampleError as error:
                work.faults.setdefault(slot, error)
                later = position + number * self._order.global_batch_size
                sample = int(self._order.samples(np.array([later]))[0])
            else:
                work.keys[slot] = key
                work.caption_ids[slot] = xxhash.xxh64_intdigest(caption.lower().encode())
                return caption
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
) -> TrainLoader:
    """The loader of one rank. Every problem that can be seen at start is raised here.

    Raises ManifestError (shard missing or truncated) or LoaderError (sizes, no captions).
    """
    return TrainLoader(
        load_manifest(config.manifest),
        config,
        image_size=image_size,
        context_length=context_length,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def _check_sizes(
    manifest: Manifest, config: DataConfig, global_batch_size: int, rank: int, world_size: int
) -> None:
    num_samples = manifest.num_samples
    if num_samples < global_batch_size:
        raise LoaderError(
            f"the data set has {num_samples} samples, fewer than one global batch of "
            f"{global_batch_size}: train.global_batch_size can be {num_samples} at most"
        )
    if global_batch_size % world_size or not 0 <= rank < world_size:
        raise LoaderError(
            f"global_batch_size {global_batch_size} must be a multiple of world_size {world_size}, "
            f"and rank {rank} below it"
        )
    if config.num_workers < 1 or config.prefetch_batches < 1:
        raise LoaderError(
            f"data.num_workers ({config.num_workers}) and data.prefetch_batches "
            f"({config.prefetch_batches}) must be at least 1"
        )

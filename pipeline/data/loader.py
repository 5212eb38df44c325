"""Manifest -> batches in the run's order, decoded by threads ahead of the training step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from data_tools.manifest import Manifest, load_manifest
from pipeline.config import DataConfig
from pipeline.data.decode import DecodeError, decode_rgb
from pipeline.data.faults import FaultLog, LoaderError, SampleError
from pipeline.data.index import SampleIndex
from pipeline.data.order import SampleOrder
from pipeline.data.reader import ShardReader
from pipeline.data.tokenizer import Tokenizer, clean_caption
from pipeline.data.transforms import (
    SampleRandom,
    crop_and_resize,
    decode_reduction,
    random_crop_box,
)
from pipeline.data.workers import WorkerPool

# A task of eight samples is 5 ms of work: the queue's cost vanishes and the threads still finish a
# batch together.
_SAMPLES_PER_TASK = 8
# A file system that answers nothing for this long is taken for dead.
_STALL_TIMEOUT_S = 300.0
_POLL_S = 0.5
_TOKENS_MULTIPLE = 8


@dataclass(slots=True)
class Batch:
    """One rank's share of a global batch; sample i of every field belongs together."""

    images: torch.Tensor
    """uint8 (B, 3, image_size, image_size), RGB; pinned where CUDA is present."""
    tokens: torch.Tensor
    """int64 (B, L), zeros after the end token; L is the longest caption here, up to the next
    multiple of 8.
    """
    caption_ids: torch.Tensor
    """int64 (B,), xxh64 of the cleaned, lower-cased caption: equal for equal captions."""
    keys: list[str]
    num_bad: int
    """Samples of this batch that could not be used and are replaced by a later one of their lane.
    """


class _BatchWork:
    """A batch in the making: threads fill its slots, the consumer waits for the last one."""

    def __init__(
        self,
        first_position: int,
        samples: np.ndarray,
        *,
        image_size: int,
        context_length: int,
        pin: bool,
    ) -> None:
        size = len(samples)
        self.first_position = first_position
        self.samples: list[int] = samples.tolist()
        self.images = torch.empty(
            (size, 3, image_size, image_size), dtype=torch.uint8, pin_memory=pin
        )
        self.pixels = self.images.numpy()
        self.tokens = np.zeros((size, context_length), dtype=np.uint16)
        self.caption_ids = np.zeros(size, dtype=np.uint64)
        self.keys = [""] * size
        self.faults: dict[int, SampleError] = {}
        self.error: BaseException | None = None
        self.cancelled = False
        self.finished = threading.Event()
        self.num_pending = size
        self._lock = threading.Lock()

    def done(self, count: int) -> None:
        with self._lock:
            self.num_pending -= count
            if not self.num_pending:
                self.finished.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.finished.set()


class TrainLoader:
    """Endless batches from any position of the order. One consumer; `close()` (or `with`) ends the
    threads.

    Its only state is the position it is asked for: `batches(samples_seen)` gives the same batches
    whatever the number of ranks and workers, pixels included.
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
        """Raises LoaderError for sizes that do not fit together or a first shard without images or
        captions.
        """
        _check_sizes(manifest, config, global_batch_size, rank, world_size)
        self.num_samples = manifest.num_samples
        self.fingerprint = manifest.fingerprint
        self.faults = FaultLog(config.max_bad_fraction)
        self._config = config
        self._image_size = image_size
        self._seed = seed
        self._local_batch_size = global_batch_size // world_size
        self._first_lane = rank * self._local_batch_size
        self._order = SampleOrder(
            manifest.num_samples,
            chunk_size=config.chunk_size,
            global_batch_size=global_batch_size,
            seed=seed,
        )
        self._index = SampleIndex(manifest)
        self._reader = ShardReader()
        self._tokenizer = Tokenizer(context_length)
        self._pin = torch.cuda.is_available()
        self._index.check_first_shard(config.max_bad_fraction)
        self._pool = WorkerPool(config.num_workers, "loader")

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Batches from position `samples_seen` of the run on, for ever. Nothing before that
        position is read.

        Raises ValueError if `samples_seen` is not a multiple of the global batch size; while
        iterating, LoaderError when too many samples are bad, when reading stalls, or when the
        loader was closed.
        """
        self._order.batch(samples_seen, 0, 1)  # checks the position now, not at the first batch
        return self._iterate(samples_seen)

    def close(self) -> None:
        """End the threads and close the files; a batch being waited for raises LoaderError."""
        self._pool.close()
        self._reader.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _iterate(self, position: int) -> Iterator[Batch]:
        pending: deque[_BatchWork] = deque()
        try:
            while True:
                while len(pending) <= self._config.prefetch_batches:
                    pending.append(self._start(position))
                    position += self._order.global_batch_size
                self._wait(pending[0])
                yield self._finish(pending.popleft())
        finally:
            for work in pending:
                work.cancelled = True

    def _start(self, samples_seen: int) -> _BatchWork:
        """Hand a batch to the threads. Its memory is allocated here, in the consumer's thread:
        pinning belongs to the CUDA device that is current there."""
        stop = self._first_lane + self._local_batch_size
        work = _BatchWork(
            samples_seen + self._first_lane,
            self._order.batch(samples_seen, self._first_lane, stop),
            image_size=self._image_size,
            context_length=self._tokenizer.context_length,
            pin=self._pin,
        )
        for first in range(0, self._local_batch_size, _SAMPLES_PER_TASK):
            slots = range(first, min(first + _SAMPLES_PER_TASK, self._local_batch_size))
            self._pool.submit(lambda slots=slots: self._fill(work, slots))  # type: ignore[misc]
        return work

    def _wait(self, work: _BatchWork) -> None:
        num_pending, deadline = work.num_pending, time.monotonic() + _STALL_TIMEOUT_S
        while not work.finished.wait(_POLL_S):
            if self._pool.closed:
                raise LoaderError("the loader was closed while a batch was being waited for")
            if work.num_pending != num_pending:
                num_pending, deadline = work.num_pending, time.monotonic() + _STALL_TIMEOUT_S
            if time.monotonic() > deadline:
                raise LoaderError(
                    f"no sample was read for {_STALL_TIMEOUT_S:.0f} s ({num_pending} outstanding "
                    f"at position {work.first_position}): does the file system answer?"
                )

    def _finish(self, work: _BatchWork) -> Batch:
        self.faults.record(len(work.samples), [work.faults[slot] for slot in sorted(work.faults)])
        if work.error is not None:
            raise work.error
        longest = int(np.count_nonzero(work.tokens, axis=1).max())
        length = min(-(-longest // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE, work.tokens.shape[1])
        tokens = torch.from_numpy(work.tokens[:, :length].astype(np.int64))
        caption_ids = torch.from_numpy(work.caption_ids.view(np.int64))
        if self._pin:
            tokens, caption_ids = tokens.pin_memory(), caption_ids.pin_memory()
        return Batch(work.images, tokens, caption_ids, work.keys, len(work.faults))

    def _fill(self, work: _BatchWork, slots: range) -> None:
        """Runs in a thread: read, decode and tokenize some slots of a batch."""
        try:
            captions = []
            for slot in slots:
                if work.cancelled or self._pool.closed:
                    return
                captions.append(self._fill_slot(work, slot))
            work.tokens[slots.start : slots.stop] = self._tokenizer.encode_cleaned(captions)
            work.done(len(slots))
        except BaseException as error:  # noqa: B036 - raised again in the consumer
            work.fail(error)

    def _fill_slot(self, work: _BatchWork, slot: int) -> str:
        """Image, key and caption id of one slot; returns its cleaned caption.

        A sample that cannot be used is replaced by the next of its lane that can: one global batch
        further on in the order.
        """
        position, sample = work.first_position + slot, work.samples[slot]
        for attempt in range(1, 2 * self._order.chunk_size + 10):
            try:
                key, caption = self._load(sample, position, work.pixels[slot])
            except SampleError as error:
                work.faults.setdefault(slot, error)
                later = position + attempt * self._order.global_batch_size
                sample = int(self._order.samples(np.array([later]))[0])
                continue
            work.keys[slot] = key
            work.caption_ids[slot] = xxhash.xxh64_intdigest(caption.lower().encode())
            return caption
        raise LoaderError(
            f"{attempt} samples of one lane in a row cannot be used; the first: {work.faults[slot]}"
        )

    def _load(self, sample: int, position: int, out: np.ndarray) -> tuple[str, str]:
        """(key, cleaned caption); the pixels go to `out`. Raises SampleError."""
        location = self._index.locate(sample)
        image_bytes, text_bytes = self._reader.read(location)
        try:
            caption = clean_caption(text_bytes.decode())
            if not caption:
                raise DecodeError("empty caption")
            image = decode_rgb(image_bytes, self._reduction)
        except ValueError as error:
            raise SampleError(
                str(error), key=location.key, shard=location.shard, offset=location.image_offset
            ) from error
        height, width = image.shape[:2]
        random = SampleRandom(self._seed, position)
        box = random_crop_box(width, height, scale_min=self._config.crop_scale_min, random=random)
        crop_and_resize(image, box, out)
        return location.key, caption

    def _reduction(self, width: int, height: int) -> int:
        scale_min = self._config.crop_scale_min
        return decode_reduction(width, height, image_size=self._image_size, scale_min=scale_min)


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
    """Raises ManifestError (missing or truncated shard) or LoaderError (sizes, captions), before
    any thread starts.
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
    if manifest.num_samples < global_batch_size:
        raise LoaderError(
            f"the data set has {manifest.num_samples} samples, fewer than one global batch of "
            f"{global_batch_size}: lower train.global_batch_size to at most {manifest.num_samples}, or add data"
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

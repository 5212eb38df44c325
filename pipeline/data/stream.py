"""Batches from tars that can only be read from their beginning: pipes, HTTP, foreign shards without
an index. Reading is webdataset's; decoding, cropping and tokenizing are the indexed loader's.

What is lost against the index: the order is a shuffle of shards and a buffer of samples, another
one for another number of ranks; there are no exact epochs; a resumed run begins a new pass over the
tars, so some samples come again and others of the interrupted pass do not come.
"""

from __future__ import annotations

import hashlib
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from webdataset.shardlists import expand_urls
from webdataset.tariterators import tarfile_samples

from pipeline.config import DataConfig
from pipeline.data.batches.batch import Batch
from pipeline.data.batches.prefetch import POLL_S, STALL_TIMEOUT_S, Loader
from pipeline.data.batches.slots import Loaded, RankShare
from pipeline.data.batches.threads import ThreadWorkerPool
from pipeline.data.faults import LoaderError, SampleError
from pipeline.data.samples.sample import RawSample, SampleDecoder

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# Encoded samples from which the next one is drawn: 60 MB per rank at 30 kB per image.
_SHUFFLE_BUFFER = 2000
_QUEUE_SIZE = 256


class StreamLoader(Loader):
    """Each rank reads its own share of the tars in one thread, and `data.num_workers` threads
    decode. Not processes: every encoded sample would have to be copied to them.
    """

    def __init__(self, config: DataConfig, share: RankShare, seed: int) -> None:
        """Raises LoaderError if there are fewer tars than ranks."""
        super().__init__(config, share)
        self._urls = [url for pattern in config.stream for url in expand_urls(pattern)]
        if len(self._urls) < share.world_size:
            raise LoaderError(
                f"data.stream names {len(self._urls)} tars for {share.world_size} ranks: each "
                f"rank reads its own, give at least {share.world_size}"
            )
        self._seed = seed
        self._decoder = SampleDecoder(config, image_size=share.image_size, seed=seed)
        self._reader: _Reader | None = None
        self.num_samples = 0
        digest = hashlib.sha256("\n".join(self._urls).encode()).hexdigest()
        self.fingerprint = f"stream-{digest[:16]}"
        self._pool = ThreadWorkerPool(self, share, config.num_workers)

    def batches(self, samples_seen: int, device: torch.device | None = None) -> Iterator[Batch]:
        if samples_seen < 0 or samples_seen % self._share.global_batch_size:
            raise ValueError(
                f"samples_seen is {samples_seen}, not a multiple of the global batch size "
                f"{self._share.global_batch_size}"
            )
        if samples_seen and not self._share.rank:
            print(
                f"data.stream cannot resume in the middle of a pass: at {samples_seen} samples the "
                f"run begins a new pass over the tars, in another order",
                file=sys.stderr,
            )
        if self._reader is not None:
            self._reader.close()
        share = self._share
        self._reader = _Reader(
            self._urls, share.rank, share.world_size, seed=(self._seed, samples_seen)
        )
        return self._iterate(samples_seen, device)

    def close(self) -> None:
        super().close()
        if self._reader is not None:
            self._reader.close()

    def samples(self, samples_seen: int, slots: range) -> list[int]:
        """Samples of a stream have no numbers; `load` takes the next one that arrives."""
        return [-1] * len(slots)

    def load(self, sample: int, position: int, out: np.ndarray) -> Loaded:
        assert self._reader is not None  # made by `batches`, which alone begins work
        fault: SampleError | None = None
        while True:
            raw = self._reader.next()
            if isinstance(raw, SampleError):
                fault = fault or raw
                continue
            try:
                return Loaded(raw.key, self._decoder.decode(raw, position, out), fault)
            except SampleError as error:
                fault = fault or error.without_frames()


class _Reader:
    """A thread that reads a rank's tars, pass after pass without end, and queues their samples."""

    def __init__(self, urls: list[str], rank: int, world_size: int, seed: tuple[int, int]) -> None:
        self._urls, self._rank, self._world_size = urls, rank, world_size
        self._seed = seed
        self._queue: queue.Queue[RawSample | SampleError | BaseException] = queue.Queue(_QUEUE_SIZE)
        self._closed = threading.Event()
        self._fault: SampleError | None = None
        self._error = LoaderError("the loader is closed")
        self._thread = threading.Thread(target=self._run, name="loader-stream", daemon=True)
        self._thread.start()

    def next(self) -> RawSample | SampleError:
        """The next sample, or what is wrong with it. Raises LoaderError."""
        since = time.monotonic()
        while not self._closed.is_set():
            try:
                item = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() - since > STALL_TIMEOUT_S:
                    raise LoaderError(
                        f"data.stream delivered no sample for {STALL_TIMEOUT_S:.0f} s"
                    ) from None
                continue
            if isinstance(item, (SampleError, RawSample)):
                return item
            # Kept for the other threads: they must raise this error, not "the loader is closed".
            self._error = LoaderError(f"data.stream cannot be read: {item}")
            self._error.__cause__ = item
            self._closed.set()
        raise self._error

    def close(self) -> None:
        self._closed.set()

    def _put(self, item: RawSample | SampleError | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            number = 0
            while not self._closed.is_set():
                if not self._pass(number):
                    fault = f", the first fault: {self._fault}" if self._fault else ""
                    raise LoaderError(f"a whole pass over this rank's tars held no sample{fault}")
                number += 1
        except BaseException as error:  # raised again by `next`
            self._put(error)

    def _pass(self, number: int) -> int:
        """Read one pass. Every rank shuffles the tars in the same way and takes its share. Returns
        the number of samples read."""
        urls = list(self._urls)
        random.Random(f"{self._seed} {number}").shuffle(urls)
        draw = random.Random(f"{self._seed} {number} {self._rank}")
        buffer: list[RawSample | SampleError] = []
        count = 0
        for sample in self._read(urls[self._rank :: self._world_size]):
            if self._closed.is_set():
                return count
            count += isinstance(sample, RawSample)
            buffer.append(sample)
            if len(buffer) >= _SHUFFLE_BUFFER:
                place = draw.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                self._put(buffer.pop())
        draw.shuffle(buffer)
        for sample in buffer:
            self._put(sample)
        return count

    def _read(self, urls: list[str]) -> Iterator[RawSample | SampleError]:
        broken: list[SampleError] = []
        for url in urls:

            def note(error: Exception, url: str = url) -> bool:
                broken.append(SampleError(f"tar cannot be read on: {error!r}", "", url, -1))
                self._fault = self._fault or broken[-1]
                return True

            for members in tarfile_samples(iter([{"url": url}]), handler=note):
                yield _raw(members)
            yield from broken
            broken.clear()


def _raw(members: dict[str, object]) -> RawSample | SampleError:
    key, url = str(members["__key__"]), str(members["__url__"])
    image = next((members[suffix] for suffix in _IMAGE_SUFFIXES if suffix in members), None)
    text, info = members.get("txt"), members.get("json", b"")
    if not isinstance(image, bytes) or not isinstance(text, bytes) or not isinstance(info, bytes):
        missing = "caption" if isinstance(image, bytes) else "image"
        return SampleError(f"no {missing}", key, url, -1)
    return RawSample(key, url, -1, image, text, info)

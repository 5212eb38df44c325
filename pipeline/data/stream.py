"""Batches from tars that can only be read from their beginning: pipes, HTTP, foreign shards without
an index. Reading is webdataset's; decoding, cropping and tokenizing are the indexed loader's.

What is lost against the index: the order is a shuffle of shards and a buffer of samples, another
one for another number of ranks; there are no exact epochs; a resumed run begins a new pass over the
tars, so some samples come again and others of the interrupted pass do not come.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import random
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Union
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from webdataset.gopen import gopen, rewrite_url
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.config import DataConfig
from pipeline.data.batches.batch import Batch
from pipeline.data.batches.prefetch import POLL_S, STALL_TIMEOUT_S, Loader
from pipeline.data.batches.slots import Loaded, RankShare
from pipeline.data.batches.threads import ThreadWorkerPool
from pipeline.data.faults import FaultCount, LoaderError, SampleError
from pipeline.data.samples.sample import RawSample, SampleDecoder

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# Encoded samples from which the next one is drawn: 60 MB per rank at 30 kB per image.
_SHUFFLE_BUFFER = 2000
_QUEUE_SIZE = 256
# What the exit codes of curl, with which webdataset reads HTTP, mean.
_CURL = {
    6: "the host is not found",
    7: "no connection to the host",
    18: "the answer ends before its stated length",
    22: "the server answers with an error (HTTP 400 or above)",
    28: "the server does not answer in time",
    35: "no secure connection to the host",
    56: "the connection broke off",
    60: "the host's certificate is not valid",
}
# Missing tars that a message lists, at most.
SHOWN = 10


class StreamLoader(Loader):
    """Each rank reads its own share of the tars in one thread, and `data.num_workers` threads
    decode. Not processes: every encoded sample would have to be copied to them.
    """

    def __init__(self, config: DataConfig, share: RankShare, seed: int) -> None:
        """Raises LoaderError if there are fewer tars than ranks, or if a local one is missing."""
        super().__init__(config, share)
        self._urls = [url for pattern in config.stream for url in expand_urls(pattern)]
        if len(self._urls) < share.world_size:
            raise LoaderError(
                f"data.stream names {len(self._urls)} tars for {share.world_size} ranks: each "
                f"rank reads its own, give at least {share.world_size}"
            )
        _refuse_missing(self._urls[share.rank :: share.world_size])
        self._seed = seed
        self._max_bad_fraction = config.max_bad_fraction
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
        self._count = _Count(self._max_bad_fraction)
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
        reader, count = self._reader, self._count
        fault: SampleError | None = None
        while True:
            number, raw = reader.next()
            if isinstance(raw, _PassEnd):
                count.end_pass(number, raw)
                continue
            try:
                if isinstance(raw, SampleError):
                    raise raw
                caption = self._decoder.decode(raw, position, out)
            except SampleError as error:
                count.add(number, error.without_frames())
                fault = fault or error.without_frames()
                continue
            count.add(number, None)
            return Loaded(raw.key, caption, fault)


def _refuse_missing(urls: list[str]) -> None:
    """Raises LoaderError, at the start, for local tars that cannot be opened."""
    problems = []
    for url in map(rewrite_url, urls):
        parts = urlparse(url)
        if url == "-" or parts.scheme not in ("", "file"):
            continue
        path = url2pathname(parts.path) if parts.scheme else url
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            number = errno.EISDIR if is_folder else 0 if os.access(path, os.R_OK) else errno.EACCES
        except OSError as error:
            number = error.errno or errno.EIO
        if number:
            problems.append(f"{path}: {os.strerror(number)} (errno {number})")
    if problems:
        shown = "\n  ".join(problems[:SHOWN])
        more = f"\n  (+{len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise LoaderError(
            f"{len(problems)} of the tars that data.stream gives to this rank cannot be read:\n"
            f"  {shown}{more}\ncorrect data.stream, or restore these files"
        )


class _PassEnd(NamedTuple):
    """Follows the last sample of a pass in the reader's queue."""

    num_items: int
    """Samples, usable or not, and faults of tars that the pass put into the queue."""
    num_tars: int


_Item = Union[RawSample, SampleError, _PassEnd]


class _Count:
    """Counts what a stream held, for all decoding threads: without an end of its own a thread would
    look for a usable sample for ever, where there is none."""

    def __init__(self, max_bad_fraction: float) -> None:
        self._faults = FaultCount(max_bad_fraction)
        self._num_read: Counter[int] = Counter()
        self._num_usable: Counter[int] = Counter()
        self._ended: dict[int, _PassEnd] = {}
        self._lock = threading.Lock()

    def add(self, number: int, fault: SampleError | None) -> None:
        """Count an item of pass `number`. Raises LoaderError if more than data.max_bad_fraction
        cannot be used, or nothing of this pass."""
        with self._lock:
            self._num_read[number] += 1
            self._num_usable[number] += fault is None
            self._faults.record(1, [fault] if fault else [])
            self._judge(number)

    def end_pass(self, number: int, ended: _PassEnd) -> None:
        """Raises LoaderError if nothing of the pass could be used."""
        with self._lock:
            self._ended[number] = ended
            self._judge(number)

    def _judge(self, number: int) -> None:
        ended = self._ended.get(number)
        # Other threads may still be decoding samples of this pass when its end is taken.
        if ended is None or self._num_read[number] < ended.num_items:
            return
        usable = self._num_usable.pop(number, 0)
        del self._ended[number], self._num_read[number]
        if not usable:
            first = "\n  ".join(self._faults.examples[:5]) or "the tars hold no sample at all"
            raise LoaderError(
                f"a whole pass over this rank's {ended.num_tars} tars of data.stream held no "
                f"usable sample. The first faults:\n  {first}\n"
                f"Give tars whose samples have an image ({', '.join(_IMAGE_SUFFIXES)}) and a "
                f"caption (txt) that can be read"
            )


class _Reader:
    """A thread that reads a rank's tars, pass after pass without end, and queues their samples."""

    def __init__(self, urls: list[str], rank: int, world_size: int, seed: tuple[int, int]) -> None:
        self._urls, self._rank, self._world_size = urls, rank, world_size
        self._seed = seed
        self._queue: queue.Queue[tuple[int, _Item] | BaseException] = queue.Queue(_QUEUE_SIZE)
        self._closed = threading.Event()
        self._error = LoaderError("the loader is closed")
        self._thread = threading.Thread(target=self._run, name="loader-stream", daemon=True)
        self._thread.start()

    def next(self) -> tuple[int, _Item]:
        """(number of the pass, sample or what is wrong with it or the end of the pass). Raises
        LoaderError."""
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
            if isinstance(item, tuple):
                return item
            # Kept for the other threads: they must raise this error, not "the loader is closed".
            self._error = LoaderError(f"data.stream cannot be read: {item}")
            self._error.__cause__ = item
            self._closed.set()
        raise self._error

    def close(self) -> None:
        self._closed.set()

    def _put(self, item: tuple[int, _Item] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            number = 0
            while not self._closed.is_set():
                self._pass(number)
                number += 1
        except BaseException as error:  # raised again by `next`
            self._put(error)

    def _pass(self, number: int) -> None:
        """Read one pass. Every rank shuffles the tars in the same way and takes its share."""
        urls = list(self._urls)
        random.Random(f"{self._seed} {number}").shuffle(urls)
        draw = random.Random(f"{self._seed} {number} {self._rank}")
        buffer: list[RawSample | SampleError] = []
        share = urls[self._rank :: self._world_size]
        num_items = 0
        for sample in self._read(share):
            if self._closed.is_set():
                return
            num_items += 1
            buffer.append(sample)
            if len(buffer) >= _SHUFFLE_BUFFER:
                place = draw.randrange(len(buffer))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                self._put((number, buffer.pop()))
        draw.shuffle(buffer)
        for sample in buffer:
            self._put((number, sample))
        self._put((number, _PassEnd(num_items, len(share))))

    def _read(self, urls: list[str]) -> Iterator[RawSample | SampleError]:
        for url in urls:
            broken: list[str] = []

            def note(error: Exception, broken: list[str] = broken) -> bool:
                # webdataset adds the stream and the URL to the arguments
                broken.append(str(error.args[0] if error.args else repr(error)))
                return True

            stream = None
            try:
                stream = gopen(url)
                members = tar_file_expander([{"url": url, "stream": stream}], handler=note)
                for sample in group_by_keys(members, handler=note):
                    yield _raw(sample)
                stream.close()
            except (OSError, ValueError) as error:
                broken.insert(0, _why(error, getattr(stream, "status", None), url))
            if broken:
                yield SampleError(f"tar cannot be read on: {broken[0]}", "", url, -1)


def _why(error: Exception, status: int | None, url: str) -> str:
    """Say what kept a tar from being read; `status`: exit code of the command that read it."""
    if status is None:
        return str(error)
    meaning = _CURL.get(status) if url.startswith(("http:", "https:")) else None
    return meaning or f"its command ended with exit code {status}"


def _raw(members: dict[str, object]) -> RawSample | SampleError:
    key, url = str(members["__key__"]), str(members["__url__"])
    image = next((members[suffix] for suffix in _IMAGE_SUFFIXES if suffix in members), None)
    text, info = members.get("txt"), members.get("json", b"")
    if not isinstance(image, bytes) or not isinstance(text, bytes) or not isinstance(info, bytes):
        missing = "caption" if isinstance(image, bytes) else "image"
        return SampleError(f"no {missing}", key, url, -1)
    return RawSample(key, url, -1, image, text, info)

"""This loader's work in processes instead of threads, for the comparison only.

Each process fills whole batches into slots of shared memory, which the consumer reads in place: no
pickling of arrays, no lock between processes but the queues' own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
import xxhash

from pipeline.config import DataConfig
from pipeline.data.dataset import open_dataset
from pipeline.data.order import SampleOrder
from pipeline.data.sample import SampleSource
from pipeline.data.tokenizer import Tokenizer
from tests.benchmarks.loader_shards import BATCH_SIZE, CROP_SCALE_MIN, IMAGE_SIZE

Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def process_batches(manifest: Path, num_workers: int) -> Iterator[int]:
    """The size of each batch, in order; its slot is overwritten after the next call."""
    context = multiprocessing.get_context("forkserver")
    num_slots = num_workers + 4
    buffers = (
        torch.empty((num_slots, BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8),
        torch.empty((num_slots, BATCH_SIZE, 77), dtype=torch.int16),
        torch.empty((num_slots, BATCH_SIZE), dtype=torch.int64),
    )
    for buffer in buffers:
        buffer.share_memory_()
    tasks, done = context.SimpleQueue(), context.SimpleQueue()
    workers = [
        context.Process(target=_fill, args=(str(manifest), buffers, tasks, done), daemon=True)
        for _ in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for step in range(num_slots - 1):
        tasks.put((step, step % num_slots))
    finished: set[int] = set()
    step = 0
    while True:
        while step not in finished:
            finished.add(done.get())
        finished.remove(step)
        yield BATCH_SIZE
        following = step + num_slots - 1
        tasks.put((following, following % num_slots))
        step += 1


def _fill(
    manifest: str,
    buffers: Buffers,
    tasks: SimpleQueue[tuple[int, int]],
    done: SimpleQueue[int],
) -> None:
    torch.set_num_threads(1)
    config = DataConfig(manifest=manifest, crop_scale_min=CROP_SCALE_MIN)
    dataset = open_dataset(manifest)
    source = SampleSource([dataset], config, image_size=IMAGE_SIZE, num_lanes=BATCH_SIZE, seed=0)
    order = SampleOrder(dataset.num_samples, chunk_size=16, global_batch_size=BATCH_SIZE, seed=0)
    tokenizer = Tokenizer(77)
    images, tokens, ids = (buffer.numpy() for buffer in buffers)
    while True:
        step, slot = tasks.get()
        position, captions = step * BATCH_SIZE, []
        for lane, sample in enumerate(order.batch(position).tolist()):
            _, caption = source.load(sample, position + lane, images[slot, lane])
            captions.append(caption)
            ids[slot, lane] = np.uint64(xxhash.xxh64_intdigest(caption.lower().encode())).view(
                np.int64
            )
        tokens[slot] = tokenizer.encode_cleaned(captions).view(np.int16)
        done.put(step)

"""Where a sample's time goes, and what a start costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from data_tools.dataset.manifest import load_manifest
from pipeline.config import DataConfig
from pipeline.data import Tokenizer, build_train_loader
from pipeline.data.order.sample_order import SampleOrder
from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.tokenizer import clean_caption
from pipeline.data.samples.transforms import (
    SampleRandom,
    random_crop_box,
    resized_crop,
    write_planes,
)
from pipeline.data.shards.index import SampleIndex
from pipeline.data.shards.reader import ShardReader
from tests.benchmarks.loader_shards import (
    BATCH_SIZE,
    CROP_SCALE_MIN,
    IMAGE_SIZE,
    caption,
    forget_pages,
)

Stage = tuple[str, Callable[..., object], list[tuple[Any, ...]]]


def stage_times(manifest: Path, num_samples: int, passes: int) -> dict[str, float]:
    """Microseconds of CPU a sample, of each stage alone in one thread: best of `passes` over up to
    1,000 samples. The last, libjpeg-turbo, is OpenCV's decode of the same bytes and nothing else.
    """
    index, reader = SampleIndex(load_manifest(manifest)), ShardReader()
    order = SampleOrder(num_samples, chunk_size=16, global_batch_size=BATCH_SIZE, seed=0)
    numbers = order.samples(np.arange(min(num_samples, 1000))).tolist()
    locations = [index.locate(number) for number in numbers]
    raw = [reader.read(location) for location in locations]
    images = [decode_rgb(image) for image, _ in raw]
    boxes = [crop_box(position) for position in range(len(numbers))]
    crops = [resized_crop(image, box, IMAGE_SIZE) for image, box in zip(images, boxes)]
    captions = [clean_caption(text.decode()) for _, text in raw]
    groups = [captions[start : start + 8] for start in range(0, len(captions), 8)]
    buffers = [np.frombuffer(image, np.uint8) for image, _ in raw]
    out = np.empty((3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    steps = range(len(numbers) // BATCH_SIZE)
    stages: list[Stage] = [
        ("order", order.batch, [(BATCH_SIZE * step,) for step in steps]),
        ("locate", index.locate, [(number,) for number in numbers]),
        ("read", reader.read, [(location,) for location in locations]),
        ("decode", decode_rgb, [(image,) for image, _ in raw]),
        ("crop box", crop_box, [(position,) for position in range(len(numbers))]),
        ("resize", resized_crop, [(i, box, IMAGE_SIZE) for i, box in zip(images, boxes)]),
        ("planes", write_planes, [(crop, out) for crop in crops]),
        ("clean caption", clean_caption, [(text.decode(),) for _, text in raw]),
        ("tokenize", Tokenizer(77).encode_cleaned, [(group,) for group in groups]),
        ("libjpeg-turbo", cv2.imdecode, [(data, cv2.IMREAD_COLOR_RGB) for data in buffers]),
    ]
    return {
        name: min(seconds(time.thread_time, stage, calls) for _ in range(passes))
        / len(numbers)
        * 1e6
        for name, stage, calls in stages
    }


def crop_box(position: int) -> tuple[int, int, int, int]:
    return random_crop_box(256, 256, scale_min=CROP_SCALE_MIN, random=SampleRandom(0, position))


def tokenizer_rates(num_captions: int, passes: int) -> dict[int, float]:
    """Captions per second, cleaned and tokenized in groups of eight, in one thread and in two."""
    captions = [caption(number) for number in range(num_captions)]
    tokenizer = Tokenizer(77)

    def work(part: list[str]) -> None:
        for start in range(0, len(part), 8):
            tokenizer.encode_cleaned([clean_caption(text) for text in part[start : start + 8]])

    def in_threads(num_threads: int) -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(work, [captions[first::num_threads] for first in range(num_threads)]))

    return {
        num_threads: num_captions
        / min(seconds(time.perf_counter, in_threads, [(num_threads,)]) for _ in range(passes))
        for num_threads in (1, 2)
    }


def first_batch_s(
    manifest: Path, samples_seen: int, passes: int, num_workers: int, workers_up: bool = False
) -> list[float]:
    """From opening the manifest to the first batch, files not in the page cache; with `workers_up`
    from when the workers have started and wait for work, as while a model is built.
    """
    times = []
    for _ in range(passes):
        forget_pages(manifest.parent)
        began = time.perf_counter()
        with build_train_loader(
            DataConfig(manifest=str(manifest), num_workers=num_workers),
            image_size=IMAGE_SIZE,
            context_length=77,
            global_batch_size=BATCH_SIZE,
            rank=0,
            world_size=1,
            seed=0,
        ) as loader:
            if workers_up:
                wait_until_idle()
                forget_pages(manifest.parent)
                began = time.perf_counter()
            next(loader.batches(samples_seen))
            times.append(time.perf_counter() - began)
    return times


def wait_until_idle() -> None:
    """Until this process's children and theirs have used no CPU for half a second: loaders go on
    filling their buffers after they were asked. 20 seconds at most.
    """
    used, until = -1.0, time.monotonic() + 20
    while used != (used := _cpu_s_of_children()) and time.monotonic() < until:
        time.sleep(0.5)


def _cpu_s_of_children() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return total


def seconds(
    clock: Callable[[], float], function: Callable[..., object], calls: list[tuple[Any, ...]]
) -> float:
    began = clock()
    for arguments in calls:
        function(*arguments)
    return clock() - began

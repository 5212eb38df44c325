"""Samples per second of the training loader, and where a sample's time goes.

    python -m tests.benchmarks.bench_loader
    python -m tests.benchmarks.bench_loader --workers 1 2 4 --num-samples 4000

2,000 JPEGs of 256 x 256 pixels and about 31 kB (1/f noise, edges, strokes), crop to 224, batch 64;
the shards are written to a temporary folder first.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_tools.manifest import load_manifest
from pipeline.config import DataConfig
from pipeline.data import Tokenizer, build_train_loader
from pipeline.data.decode import decode_rgb
from pipeline.data.index import SampleIndex
from pipeline.data.order import SampleOrder
from pipeline.data.reader import ShardReader
from pipeline.data.tokenizer import clean_caption
from pipeline.data.transforms import SampleRandom, crop_and_resize, random_crop_box
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.shards import make_samples, write_shards

IMAGE_SIZE = 224
BATCH_SIZE = 64
PLAIN = "A black and white cat sits on a wooden table beside a bowl, photo {number}"
NASTY = "L&rsquo;été à la plage — “photo” n° {number} &amp; vidéo"


def photo(number: int) -> bytes:
    return encode(synthetic_photo(number, 256, 256), parameters=(cv2.IMWRITE_JPEG_QUALITY, 88))


def write_data(folder: Path, num_samples: int) -> Path:
    distinct = [photo(number) for number in range(min(num_samples, 200))]
    samples = make_samples(num_samples, lambda number: distinct[number % len(distinct)])
    for number, sample in enumerate(samples):
        sample.caption = (NASTY if number % 5 == 0 else PLAIN).format(number=number)
    size = sum(len(data) for data in distinct) / len(distinct)
    print(
        f"{num_samples} samples, {size / 1000:.1f} kB a JPEG, one caption in five not plain ASCII"
    )
    return write_shards(folder, samples, per_shard=500)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_loader(manifest: Path, num_workers: int, num_samples: int, passes: int) -> None:
    """Best and median pass; the first batches, which fill the pipeline, are not counted."""
    config = DataConfig(manifest=str(manifest), num_workers=num_workers)
    with build_train_loader(
        config,
        image_size=IMAGE_SIZE,
        context_length=77,
        global_batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        seed=0,
    ) as loader:
        began = time.perf_counter()
        batches = loader.batches(0)
        next(batches)
        first_s = time.perf_counter() - began
        for _ in range(config.prefetch_batches + 1):
            next(batches)
        num_batches = num_samples // BATCH_SIZE
        rates, cpu_rates = [], []
        for _ in range(passes):
            began, began_cpu = time.perf_counter(), cpu_s()
            for _ in range(num_batches):
                next(batches)
            rates.append(num_batches * BATCH_SIZE / (time.perf_counter() - began))
            cpu_rates.append(num_batches * BATCH_SIZE / (cpu_s() - began_cpu))
    print(
        f"workers {num_workers}: {max(rates):.0f} samples/s best, {np.median(rates):.0f} median; "
        f"{max(cpu_rates):.0f} per CPU-second; first batch after {first_s * 1000:.0f} ms"
    )


def measure_stages(manifest: Path, num_samples: int) -> None:
    """CPU time of each stage alone in one thread, best of five passes over 1,000 samples."""
    index, reader = SampleIndex(load_manifest(manifest)), ShardReader()
    order = SampleOrder(num_samples, chunk_size=16, global_batch_size=BATCH_SIZE, seed=0)
    numbers = order.samples(np.arange(min(num_samples, 1000))).tolist()
    locations = [index.locate(number) for number in numbers]
    raw = [reader.read(location) for location in locations]
    images = [decode_rgb(image) for image, _ in raw]
    boxes = [crop_box(position) for position in range(len(numbers))]
    captions = [clean_caption(text.decode()) for _, text in raw]
    groups = [captions[start : start + 8] for start in range(0, len(captions), 8)]
    out = np.empty((3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    steps = range(len(numbers) // BATCH_SIZE)
    stages: list[tuple[str, Callable[..., object], list[tuple[Any, ...]]]] = [
        ("order", order.batch, [(BATCH_SIZE * step,) for step in steps]),
        ("locate", index.locate, [(number,) for number in numbers]),
        ("read", reader.read, [(location,) for location in locations]),
        ("decode", decode_rgb, [(image,) for image, _ in raw]),
        ("crop box", crop_box, [(position,) for position in range(len(numbers))]),
        ("resize", crop_and_resize, [(image, box, out) for image, box in zip(images, boxes)]),
        ("clean caption", clean_caption, [(text.decode(),) for _, text in raw]),
        ("tokenize", Tokenizer(77).encode_cleaned, [(group,) for group in groups]),
    ]
    total = 0.0
    for name, stage, calls in stages:
        best = min(seconds(time.thread_time, stage, calls) for _ in range(5)) / len(numbers) * 1e6
        total += best
        print(f"  {name:14s} {best:7.1f} us")
    print(f"  {'sum':14s} {total:7.1f} us")


def crop_box(position: int) -> tuple[int, int, int, int]:
    return random_crop_box(256, 256, scale_min=0.9, random=SampleRandom(0, position))


def measure_tokenizer_threads(num_captions: int = 20_000) -> None:
    """Cleaning and tokenizing in groups of eight, as the loader does, in one thread and in two."""
    captions = [
        (NASTY if number % 5 == 0 else PLAIN).format(number=number)
        for number in range(num_captions)
    ]
    tokenizer = Tokenizer(77)

    def work(part: list[str]) -> None:
        for start in range(0, len(part), 8):
            tokenizer.encode_cleaned([clean_caption(text) for text in part[start : start + 8]])

    def in_threads(num_threads: int) -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(work, [captions[first::num_threads] for first in range(num_threads)]))

    for num_threads in (1, 2):
        best = min(seconds(time.perf_counter, in_threads, [(num_threads,)]) for _ in range(5))
        print(f"  captions, {num_threads} threads: {num_captions / best:,.0f}/s")


def seconds(
    clock: Callable[[], float], function: Callable[..., object], calls: list[tuple[Any, ...]]
) -> float:
    began = clock()
    for arguments in calls:
        function(*arguments)
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_data(Path(folder), arguments.num_samples)
        measure_stages(manifest, arguments.num_samples)
        measure_tokenizer_threads()
        for num_workers in arguments.workers:
            measure_loader(manifest, num_workers, arguments.num_samples, arguments.passes)


if __name__ == "__main__":
    main()

"""One loader in a process of its own, driven by bench_loader through a pipe.

    python -m tests.benchmarks.loader_providers NAME MANIFEST WORKERS

Each line of standard input is a number of samples; the answer is a line of JSON: samples, seconds,
and CPU seconds and resident memory of the process and its children. `ours` is the loader as users
get it, `threads` and `processes` are its two kinds of workers at any number of them. Peers do what
their users do:

open_clip      open_clip_torch 3.3.0's own get_wds_dataset, transforms and tokenizer, resampled
               shards (no refill of its shuffle buffer at an epoch's end). Needs an environment of
               its own: --peer-python.
restated       the same pipeline written here from its description, where open_clip is not
               installed: webdataset, 1,000 of 5,000 samples shuffled, Pillow's decode, the random
               resized crop (bicubic), float tensor, normalisation, ftfy and a tokenizer in Python
               with its words cached, batches made in the DataLoader's processes.
streaming      mosaicml-streaming on its own format (MDS), the same JPEGs and restated transforms.
spdl           spdl's threads: FFmpeg decodes, crops and scales (bicubic); uint8; this project's
               tokenizer, because it has none.
"""

from __future__ import annotations

import argparse
import html
import io
import itertools
import json
import math
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tests.benchmarks.loader_shards import BATCH_SIZE, CROP_SCALE_MIN, IMAGE_SIZE

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def ours(manifest: Path, num_workers: int) -> Iterator[int]:
    """As users get it: a thread, or several processes."""
    from pipeline.config import DataConfig
    from pipeline.data import build_train_loader

    config = DataConfig(
        manifest=str(manifest), num_workers=num_workers, crop_scale_min=CROP_SCALE_MIN
    )
    loader = build_train_loader(
        config,
        image_size=IMAGE_SIZE,
        context_length=77,
        global_batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        seed=0,
    )
    return (len(batch.images) for batch in loader.batches(0))


def threads(manifest: Path, num_workers: int) -> Iterator[int]:
    """The same loader with threads at any number of workers."""
    from pipeline.data.batches.threads import ThreadWorkerPool
    from pipeline.data.loader import TrainLoader

    def make(loader: Any, plan: Any, workers: Any) -> Any:
        if workers:
            workers.kill()
        return ThreadWorkerPool(loader._lanes, plan.share, num_workers)

    owner: Any = TrainLoader
    owner._make_pool = make
    return ours(manifest, num_workers)


def processes(manifest: Path, num_workers: int) -> Iterator[int]:
    """The same loader with processes at any number of workers."""
    from pipeline.data.batches.processes import ProcessWorkerPool, WorkerProcesses
    from pipeline.data.loader import TrainLoader

    def make(loader: Any, plan: Any, workers: Any) -> Any:
        return ProcessWorkerPool(
            plan, workers or WorkerProcesses(num_workers, plan.share.batch_size)
        )

    owner: Any = TrainLoader
    owner._make_pool = make
    return ours(manifest, num_workers)


def open_clip(manifest: Path, num_workers: int) -> Iterator[int]:
    from open_clip import get_tokenizer
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train.data import get_wds_dataset

    arguments = argparse.Namespace(
        train_data="::".join(_tars(manifest)),
        train_data_upsampling_factors=None,
        train_num_samples=10_000_000,
        dataset_resampled=True,
        seed=0,
        batch_size=BATCH_SIZE,
        workers=num_workers,
        world_size=1,
    )
    transform = image_transform(
        IMAGE_SIZE, is_train=True, aug_cfg=AugmentationCfg(scale=(CROP_SCALE_MIN, 1.0))
    )
    data = get_wds_dataset(arguments, transform, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))
    return (len(images) for images, _ in data.dataloader)


def restated(manifest: Path, num_workers: int) -> Iterator[int]:
    import webdataset

    def finish(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return transform(sample["jpg"]), tokenize(sample["txt"].decode())

    pipeline = webdataset.DataPipeline(
        webdataset.ResampledShards(_tars(manifest)),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(5000, initial=1000),
        webdataset.map(finish),
        webdataset.batched(BATCH_SIZE, partial=False),
    )
    loader: Any = torch.utils.data.DataLoader(
        pipeline, batch_size=None, num_workers=num_workers, persistent_workers=True
    )
    return (len(images) for images, _ in loader)


def streaming(manifest: Path, num_workers: int) -> Iterator[int]:
    from streaming import MDSWriter, StreamingDataset

    folder = manifest.parent / f"mds-{num_workers}"
    with MDSWriter(out=str(folder), columns={"image": "bytes", "caption": "str"}) as writer:
        for image, text in itertools.islice(_raw_samples(manifest), _num_samples(manifest)):
            writer.write({"image": image, "caption": text.decode()})

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
            row = super().__getitem__(at)
            return transform(row["image"]), tokenize(row["caption"])

    data = Images(local=str(folder), shuffle=True, batch_size=BATCH_SIZE, epoch_size=10_000_000)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers)
    return (len(images) for images, _ in loader)


def spdl(manifest: Path, num_workers: int) -> Iterator[int]:
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    from pipeline.data.samples.tokenizer import Tokenizer

    tokenizer = Tokenizer(77)

    def load(sample: tuple[bytes, bytes]) -> tuple[np.ndarray, str]:
        left, top, width, height = crop_box(256, 256)
        crop = f"crop={width}:{height}:{left}:{top}"
        description = spdl.io.get_video_filter_desc(
            filter_desc=f"{crop},scale={IMAGE_SIZE}:{IMAGE_SIZE}:flags=bicubic", pix_fmt="rgb24"
        )
        frames = spdl.io.decode_packets(spdl.io.demux_image(sample[0]), filter_desc=description)
        return spdl.io.to_numpy(spdl.io.convert_frames(frames)), sample[1].decode()

    def batch(samples: list[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        return images, tokenizer([text for _, text in samples])

    built = (
        PipelineBuilder()
        .add_source(_raw_samples(manifest))
        .pipe(load, concurrency=num_workers, output_order="input")
        .aggregate(BATCH_SIZE)
        .pipe(batch)
        .add_sink(4)
        .build(num_threads=num_workers)
    )
    built.start()
    return (len(images) for images, _ in built)


def transform(data: bytes) -> torch.Tensor:
    """Pillow's decode, random resized crop by Pillow's antialiased bicubic, float, normalised."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, width, height = crop_box(*image.size)
    crop = image.crop((left, top, left + width, top + height))
    crop = crop.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(MEAN).div_(STD)


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = random.uniform(CROP_SCALE_MIN, 1.0) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def tokenize(text: str) -> torch.Tensor:
    """Cleaning, words by regular expression, their ids from a cache: the work of open_clip's
    tokenizer once it has seen the words.
    """
    import ftfy

    cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    words = _word_pattern().findall(" ".join(cleaned.split()).lower())
    ids = [49406, *(number for word in words for number in _word_ids(word))][:76] + [49407]
    out = torch.zeros(77, dtype=torch.long)
    out[: len(ids)] = torch.tensor(ids)
    return out


@cache
def _word_pattern() -> Any:
    import regex

    return regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


@cache
def _word_ids(word: str) -> tuple[int, ...]:
    from pipeline.data.samples.tokenizer import Tokenizer

    row = Tokenizer(77).encode_cleaned([word])[0].tolist()
    return tuple(row[1 : row.index(49407)])


def _tars(manifest: Path) -> list[str]:
    return sorted(str(path) for path in (manifest.parent / "shards").glob("*.tar"))


def _num_samples(manifest: Path) -> int:
    return int(json.loads(manifest.read_text())["num_samples"])


def _raw_samples(manifest: Path) -> Iterator[tuple[bytes, bytes]]:
    """(image, text) of every sample, for ever."""
    while True:
        for path in _tars(manifest):
            members: dict[str, bytes] = {}
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    members[member.name.rpartition(".")[2]] = file.read() if file else b""
                    if len(members) == 3:
                        yield members["jpg"], members["txt"]
                        members = {}


PROVIDERS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    function.__name__: function
    for function in (ours, threads, processes, open_clip, restated, streaming, spdl)
}


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for one in family(process):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def main(name: str, manifest: Path, num_workers: int) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    torch.set_num_threads(1)
    batches = PROVIDERS[name](manifest, num_workers)
    process = psutil.Process()
    next(batches)
    for line in sys.stdin:
        for _ in range(2 * num_workers + 6):  # those that were made while the others ran
            next(batches)
        wanted, count = int(line), 0
        began, began_cpu = time.perf_counter(), cpu_s(process)
        while count < wanted:
            count += next(batches)
        told = {
            "samples": count,
            "seconds": time.perf_counter() - began,
            "cpu_s": cpu_s(process) - began_cpu,
            "resident_mb": [round(one.memory_info().rss / 1e6) for one in family(process)],
        }
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

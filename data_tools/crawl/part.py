"""One part: its rows are fetched by one run of img2dataset through the guard, verified, and put in
place.

    part-00000/images/00000.tar ...         what img2dataset wrote
    part-00000/{fetched,fates}.parquet, guard.jsonl, img2dataset.log
    part-00000/part.json                    its fingerprint; a part with its final name is complete

A part is built in .part-00000.*.tmp until it is verified. The process that works on it holds a lock
in there, so that no other process takes it for the leftover of a killed run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import pyarrow as pa

from data_tools.config import CrawlConfig
from data_tools.crawl.child_processes import GuardProcess, log_tail, run_img2dataset
from data_tools.crawl.part_plan import BOXES, Plan
from data_tools.crawl.verify import PartUrls, verify_part
from data_tools.ground.aside import sync, sync_folder
from data_tools.ground.lock import HeldError, LockError, take
from data_tools.tables.schema import FATES, FETCHED, DataError, read_table, write_table
from data_tools.work.progress import StageProgress

TO_GUARD = pa.schema([("url", pa.string()), ("upright_only", pa.bool_())])
TO_IMG2DATASET = pa.schema([("url_id", pa.int64()), ("url", pa.string())])
# With fewer URLs per process, starting the process (1.8 s of CPU) costs more than it saves.
MIN_URLS_PER_PROCESS = 500


@dataclass(frozen=True)
class Part:
    """Part `index` of a plan, and the folder that it becomes."""

    folder: Path
    crawl_folder: Path
    """The folder that FETCHED.shard is relative to."""
    plan: Plan
    index: int
    fingerprint: str

    @property
    def num_rows(self) -> int:
        return self.plan.parts[self.index].rows

    @property
    def is_done(self) -> bool:
        """Whether the part's folder has its final name, which it gets when it is complete."""
        return self.folder.exists()

    def rows(self) -> pa.Table:
        """The planned rows, with the schema ROWS."""
        return self.plan.read(self.index)

    def read(self, name: str, schema: pa.Schema) -> pa.Table:
        """A table of a finished part: "fetched" or "fates"."""
        return read_table(self.folder / f"{name}.parquet", schema)

    def refuse_another(self) -> None:
        """Raise DataError if the part's folder holds other rows, or rows crawled otherwise."""
        if not self.folder.exists():
            return
        marker = self.folder / "part.json"
        made_with = json.loads(marker.read_text())["fingerprint"] if marker.exists() else "unknown"
        if made_with != self.fingerprint:
            raise DataError(
                f"{self.folder} was crawled from other rows or with other settings (fingerprint "
                f"{made_with}, now {self.fingerprint}): go back to those settings, give another "
                f"out_dir, or delete {self.folder.parent} to crawl again"
            )


@contextmanager
def _aside(part: Part) -> Iterator[Path]:
    """Yield a new, locked folder beside the part's final one, and remove what a killed run left.
    Raises DataError if another process is at work on the part."""
    for leftover in part.folder.parent.glob(f".{part.folder.name}.*.tmp"):
        with _lock(leftover, part):
            shutil.rmtree(leftover)
    aside = part.folder.with_name(f".{part.folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir(parents=True)
    with _lock(aside, part):
        yield aside


def _lock(folder: Path, part: Part) -> IO[str]:
    try:
        return take(folder / "lock")
    except HeldError as error:
        raise DataError(
            f"another process is crawling {part.folder} ({error}): give each task of the array "
            "another I in --task I/N, and the same N"
        ) from None
    except LockError as error:
        raise DataError(str(error)) from error


def crawl_part(
    part: Part, config: CrawlConfig, guard: GuardProcess, progress: StageProgress
) -> None:
    """Fetch and verify one part in a folder aside, then rename the folder to its final name."""
    urls = PartUrls.from_rows(part.rows(), blur=bool(config.face_boxes.paths))
    with _aside(part) as aside:
        fates, images, log = aside / "guard.jsonl", aside / "images", aside / "img2dataset.log"
        fates.touch()
        log.touch()
        num_shards = 0
        if urls.asked():
            num_shards = _fetch(part, urls, aside, config, guard, progress)
        name = str(part.folder.relative_to(part.crawl_folder) / "images")
        try:
            result = verify_part(images, urls, num_shards, fates, log, name)
        except DataError as error:
            message = f"{error}: run again, the part is crawled anew\n{log_tail(log)}"
            raise DataError(message) from error
        write_table(result.fetched, aside / "fetched.parquet", FETCHED)
        write_table(result.fates, aside / "fates.parquet", FATES)
        (aside / "part.json").write_text(json.dumps({"fingerprint": part.fingerprint}) + "\n")
        (aside / "lock").unlink()
        sync(aside)
        os.rename(aside, part.folder)
        sync_folder(part.folder.parent)


def _fetch(
    part: Part,
    urls: PartUrls,
    aside: Path,
    config: CrawlConfig,
    guard: GuardProcess,
    progress: StageProgress,
) -> int:
    """Run img2dataset on the part's URLs; returns the number of shards that it should write."""
    to_guard, to_img2dataset = aside / "urls.parquet", aside / "guard_urls.parquet"
    has_faces = [bool(boxes) for boxes in urls.face_boxes or [None] * len(urls)]
    write_table(pa.table({"url": urls.urls, "upright_only": has_faces}), to_guard, TO_GUARD)
    address = guard.serve(to_guard, aside / "guard.jsonl")
    _write_input(urls, address, to_img2dataset)
    num_asked = len(urls.asked())
    run = img2dataset_arguments(config, to_img2dataset, aside / "images", num_asked)
    (aside / "arguments.json").write_text(json.dumps(run, indent=1))
    with (aside / "guard.jsonl").open("rb") as tail:
        pulse = _pulse(tail, aside / "images", progress, part.num_rows / num_asked)
        run_img2dataset(
            aside / "arguments.json",
            aside / "img2dataset.log",
            guard=guard,
            pulse=pulse,
            stall_timeout_s=config.stall_timeout_s,
        )
    to_guard.unlink()
    to_img2dataset.unlink()
    return math.ceil(num_asked / run["number_sample_per_shard"])


def _write_input(urls: PartUrls, address: str, file: Path) -> None:
    """Write the table that img2dataset reads: the guard's address for each URL, and the boxes of
    the faces that it is to blur."""
    asked = urls.asked()
    columns = {"url_id": asked, "url": [f"{address}?id={number}" for number in asked]}
    table, schema = pa.table(columns), TO_IMG2DATASET
    if urls.face_boxes is not None:
        schema = schema.append(pa.field("face_boxes", BOXES))
        boxes = pa.array([urls.face_boxes[number] for number in asked], BOXES)
        table = table.append_column("face_boxes", boxes)
    write_table(table, file, schema)


def img2dataset_arguments(config: CrawlConfig, urls: Path, output: Path, num_urls: int) -> dict:
    """The arguments of img2dataset.download. Each process gets one shard: to start a process costs
    1.8 s of CPU, and every shard waits for its slowest URL."""
    processes = max(1, min(config.processes, num_urls // MIN_URLS_PER_PROCESS))
    return {
        "resize_only_if_bigger": True,
        # the guard takes hash, size and orientation: it sees the bytes as the site sent them
        "extract_exif": False,
        **config.img2dataset,
        "compute_hash": None,
        "url_list": str(urls),
        "input_format": "parquet",
        "url_col": "url",
        "bbox_col": "face_boxes" if config.face_boxes.paths else None,
        "save_additional_columns": ["url_id"],
        "output_folder": str(output),
        "output_format": "webdataset",
        "number_sample_per_shard": math.ceil(num_urls / processes),
        "processes_count": processes,
        "thread_count": max(1, config.threads // processes),
        "image_size": config.image_size,
        "resize_mode": config.resize_mode.value,
        "encode_format": "jpg",
        "encode_quality": config.encode_quality,
        # the guard enforces the deadline of a URL; this one is only for a guard that hangs
        "timeout": config.stall_timeout_s + config.timeout_s + config.max_host_wait_s,
        "retries": 0,
        "max_shard_retry": 0,
        "disallowed_header_directives": [],
        "enable_wandb": False,
    }


def _pulse(
    fates: BinaryIO, images: Path, progress: StageProgress, rows_per_url: float
) -> Callable[[], object]:
    """A function whose value changes with every URL that the guard is done with, every block that
    img2dataset writes, and each second in which a URL waits for its host's turn (the guard changes
    the time of its file then). Each call also updates `progress`."""
    before, urls = progress.done, 0

    def pulse() -> object:
        nonlocal urls
        urls += fates.read().count(b"\n")
        progress.update(before + round(urls * rows_per_url))
        sizes = sum(file.stat().st_size for file in images.glob("*.*")) if images.exists() else 0
        return urls, sizes, os.fstat(fates.fileno()).st_mtime_ns

    return pulse

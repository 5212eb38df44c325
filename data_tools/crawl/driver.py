"""The crawl stage: kept pairs in parts, each part fetched by one img2dataset run, verified, and put
in place.

    crawl/part-00000/images/00000.tar ...   what img2dataset wrote
    crawl/part-00000/{rows,fetched,fates}.parquet, guard.jsonl, img2dataset.log
    crawl/part-00000/part.json              its fingerprint; a part with its final name is complete

A part lies aside (.part-00000.*.tmp) until it is verified. A part that is there is not crawled
again; one that was made of other rows or with other settings is never mixed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from data_tools.config import CrawlConfig, DatasetJob, fingerprint
from data_tools.crawl.guard import GuardSettings
from data_tools.crawl.processes import GuardProcess, log_tail, run_img2dataset, sigterm_raises
from data_tools.crawl.verify import fate_counts, verify_part
from data_tools.progress import StageProgress
from data_tools.schema import (
    FATES,
    FETCHED,
    FETCHED_STATUS,
    KEPT,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from data_tools.sources.http import user_agent
from data_tools.tasks import ALL, Task

ROWS = pa.schema([("uid", pa.string()), ("url", pa.string())])
# Fewer rows than this a process, and starting the process (1.8 s of CPU) costs more than it brings.
MIN_ROWS_PER_PROCESS = 500
# These change how fast a crawl goes, not what it finds.
SPEED_SETTINGS = {"processes", "threads", "stall_timeout_s", "connections_per_host"}


@dataclass(frozen=True)
class Part:
    folder: Path
    rows: pa.Table  # ROWS
    fingerprint: str

    @property
    def is_done(self) -> bool:
        return self.folder.exists()

    def read(self, name: str, schema: pa.Schema) -> pa.Table:
        return read_table(self.folder / f"{name}.parquet", schema)


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Crawl every kept pair; resumes at the first part that is not there. DataError when no image
    came."""
    run_share(job, paths, ALL)
    return _collect(_parts(job, paths), paths)


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task) -> dict[str, int]:
    """Crawl the parts of one task that are not there yet. DataError when nothing was kept."""
    parts = _parts(job, paths)
    refuse_other_parts(parts, paths.crawl)
    own = task.share(parts)
    todo = [part for part in own if not part.is_done]
    with StageProgress("crawl", total=sum(part.rows.num_rows for part in own)) as progress:
        progress.advance(sum(part.rows.num_rows for part in own if part.is_done))
        if todo:
            with sigterm_raises(), GuardProcess(guard_settings(job)) as guard:
                for part in todo:
                    crawl_part(part, job.crawl, guard, progress)
    return {"parts": len(own), "crawled": len(todo)}


def _parts(job: DatasetJob, paths: DatasetPaths) -> list[Part]:
    kept = read_table(paths.table("kept"), KEPT)
    if kept.num_rows == 0:
        raise DataError(
            "no pair was kept, so there is nothing to crawl: give other queries or sources"
        )
    return plan_parts(kept.select(ROWS.names), job.crawl, paths.crawl)


def plan_parts(rows: pa.Table, config: CrawlConfig, folder: Path) -> list[Part]:
    """Cut the rows, in the order of their uid, into parts. uids are hashes: neighbours are of
    different sites, so that no part hammers one site, and the cut does not depend on the order of
    the table."""
    rows = rows.sort_by("uid")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in SPEED_SETTINGS}
    parts = []
    for index, start in enumerate(range(0, rows.num_rows, config.samples_per_part)):
        own = rows.slice(start, config.samples_per_part)
        digest = hashlib.sha256()
        for uid, url in zip(own["uid"].to_pylist(), own["url"].to_pylist(), strict=True):
            digest.update(f"{uid} {url}\n".encode())
        parts.append(
            Part(folder / f"part-{index:05d}", own, fingerprint(settings, digest.hexdigest()))
        )
    return parts


def refuse_other_parts(parts: list[Part], folder: Path) -> None:
    """DataError when the folder holds a part that is not one of these; clears away what a killed
    run left aside."""
    ours = {part.folder.name: part.fingerprint for part in parts}
    for found in sorted(folder.glob("part-*")):
        marker = found / "part.json"
        made_with = json.loads(marker.read_text())["fingerprint"] if marker.exists() else "unknown"
        wanted = ours.get(found.name, "none: there are fewer parts")
        if wanted != made_with:
            raise DataError(
                f"{found} was crawled from other rows or with other settings (fingerprint "
                f"{made_with}, now {wanted}): go back to those settings, give another out_dir, or "
                f"delete {folder} to crawl again"
            )
    for leftover in folder.glob(".part-*.tmp"):
        shutil.rmtree(leftover)


def guard_settings(job: DatasetJob) -> GuardSettings:
    return GuardSettings(
        user_agent=user_agent(job.sources.contact),
        timeout_s=job.crawl.timeout_s,
        max_image_bytes=job.crawl.max_image_bytes,
        max_image_pixels=job.crawl.max_image_pixels,
        connections_per_host=job.crawl.connections_per_host,
        respect_robots_txt=job.crawl.respect_robots_txt,
        allow_private=list(job.crawl.allow_private),
    )


def crawl_part(
    part: Part, config: CrawlConfig, guard: GuardProcess, progress: StageProgress
) -> None:
    """Fetch and verify one part beside its place, then rename it into its place."""
    aside = part.folder.with_name(f".{part.folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir(parents=True)
    rows, fates, log = aside / "rows.parquet", aside / "guard.jsonl", aside / "img2dataset.log"
    write_table(part.rows, rows, ROWS)
    fates.touch()
    address = guard.serve(rows, fates)
    to_guard = aside / "guard_urls.parquet"
    urls = [f"{address}?id={number}" for number in range(part.rows.num_rows)]
    write_table(pa.table({"uid": part.rows["uid"], "url": urls}), to_guard, ROWS)
    arguments = img2dataset_arguments(config, to_guard, aside / "images", part.rows.num_rows)
    (aside / "arguments.json").write_text(json.dumps(arguments, indent=1))
    with fates.open("rb") as tail:
        run_img2dataset(
            aside / "arguments.json",
            log,
            guard=guard,
            pulse=_pulse(tail, aside / "images", progress),
            stall_timeout_s=config.stall_timeout_s,
        )
    num_shards = math.ceil(part.rows.num_rows / arguments["number_sample_per_shard"])
    uids = part.rows["uid"].to_pylist()
    try:
        result = verify_part(
            aside / "images", uids, num_shards, fates, f"{part.folder.name}/images"
        )
    except DataError as error:
        raise DataError(f"{error}: run again, the part is crawled anew\n{log_tail(log)}") from error
    write_table(result.fetched, aside / "fetched.parquet", FETCHED)
    write_table(result.fates, aside / "fates.parquet", FATES)
    (aside / "part.json").write_text(json.dumps({"fingerprint": part.fingerprint}) + "\n")
    os.rename(aside, part.folder)


def img2dataset_arguments(config: CrawlConfig, urls: Path, output: Path, num_rows: int) -> dict:
    """One shard for each process, each process once: img2dataset starts a process in 1.8 s of CPU,
    and a shard ends with its slowest URL."""
    processes = max(1, min(config.processes, num_rows // MIN_ROWS_PER_PROCESS))
    return {
        "url_list": str(urls),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": ["uid"],
        "output_folder": str(output),
        "output_format": "webdataset",
        "number_sample_per_shard": math.ceil(num_rows / processes),
        "processes_count": processes,
        "thread_count": max(1, config.threads // processes),
        "image_size": config.image_size,
        "resize_mode": config.resize_mode.value,
        "resize_only_if_bigger": True,
        "encode_format": "jpg",
        "encode_quality": config.encode_quality,
        # The guard keeps the deadline of a URL; this one only ends a wait for a guard that hangs.
        "timeout": config.stall_timeout_s + config.timeout_s,
        "retries": 0,
        "max_shard_retry": 0,
        # Hash, size and orientation are the guard's business: it sees the bytes as the site sent
        # them.
        "compute_hash": None,
        "extract_exif": False,
        "disallowed_header_directives": [],
        "enable_wandb": False,
    }


def _pulse(fates: BinaryIO, images: Path, progress: StageProgress) -> Callable[[], object]:
    """Changes with every URL the guard is done with and every block that reaches a file of
    img2dataset."""
    before = progress.done

    def pulse() -> object:
        progress.update(progress.done + fates.read().count(b"\n"))
        sizes = sum(file.stat().st_size for file in images.glob("*.*")) if images.exists() else 0
        return progress.done - before, sizes

    return pulse


def _collect(parts: list[Part], paths: DatasetPaths) -> dict[str, int]:
    fates = pa.concat_tables([part.read("fates", FATES) for part in parts])
    fetched = pa.concat_tables([part.read("fetched", FETCHED) for part in parts])
    write_table(fates, paths.fates("crawl"), FATES)
    counts = fate_counts(fates)
    if fetched.num_rows == 0:
        # Nothing here is worth keeping, and parts that stayed would be taken for done by the next
        # run.
        for part in parts:
            shutil.rmtree(part.folder)
        listed = ", ".join(f"{count} {status}" for status, count in counts.items())
        raise DataError(
            f"the crawl brought no image of {fates.num_rows} URLs: {listed}. {_advice(counts)}"
        )
    write_table(fetched, paths.table("fetched"), FETCHED)
    failed = sum(count for status, count in counts.items() if status.startswith("failed"))
    rejected = sum(count for status, count in counts.items() if status.startswith("rejected"))
    return {
        "kept": fates.num_rows,
        FETCHED_STATUS: fetched.num_rows,
        "failed": failed,
        "rejected": rejected,
    }


def _advice(counts: dict[str, int]) -> str:
    """What to try, by the most frequent fate."""
    most = next(iter(counts))
    advice = {
        "rejected:private_address": "A server of your own is fetched from when it is named: "
        "'crawl.allow_private=[host:port]'",
        "rejected:robots": "The sites' robots.txt forbids it: ask another source",
        "failed:dns": "Does this machine resolve names and reach the internet?",
        "failed:connect": "Does this machine reach the internet, and do the servers run?",
        "failed:timeout": "Does this machine reach the internet? Else raise crawl.timeout_s",
    }
    return advice.get(most, "Do the URLs still work? Open some of tables/kept.parquet")

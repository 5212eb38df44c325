"""From kept (url, caption) pairs to images: img2dataset fetches through a guard, and every part is
verified.

Reads kept.parquet; writes fetched.parquet, the fates of the stage, and below crawl/ one folder per
part with the tars that img2dataset wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_tools.config import DatasetJob
    from data_tools.tables.schema import DatasetPaths
    from data_tools.work.tasks import Task


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Crawl everything. See data_tools.crawl.stage."""
    # imported here because each worker process of img2dataset imports this package on its way to
    # img2dataset_part, and does not need the driver's imports (hydra, aiohttp: half a second of CPU
    # each)
    from data_tools.crawl.stage import run as drive

    return drive(job, paths)


def inputs(job: DatasetJob) -> list[list]:
    """Name, size and time of every table of face boxes: the stage runs again when one changes."""
    from data_tools.crawl.kept_rows import boxes_inputs

    return boxes_inputs(job.crawl.face_boxes)


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task) -> dict[str, int]:
    """Crawl the parts of one task. See data_tools.crawl.stage."""
    from data_tools.crawl.stage import run_share as drive_share

    return drive_share(job, paths, task)

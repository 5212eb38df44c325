"""Small inputs for tests: pictures, and dataset jobs that ask a local server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_tools.config import CommonsConfig, DatasetJob, QueriesConfig, SourcesConfig
from data_tools.demo.server import Picture
from data_tools.tables.schema import DatasetPaths

CONTACT = "tests@example.org"


def png(width: int = 80, height: int = 60, gray: int = 200) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), gray, np.uint8))[1].tobytes()


def pixels(content: bytes) -> np.ndarray:
    """RGB uint8 (height, width, 3) of an encoded image."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "not an image"
    return image[:, :, ::-1]


def animals(count: int = 7) -> list[Picture]:
    """`count` cats, each on its own picture, and one dog."""
    names = [f"Cat {number:02d}.png" for number in range(count)]
    text = "<p>A <b>cat</b> &amp; its <a href='/x'>shadow</a>, no. {}</p>"
    cats = [Picture(name, png(), text.format(number)) for number, name in enumerate(names)]
    return [*cats, Picture("Dog.png", png(), "<p>A dog</p>")]


def job_for(
    folder: Path, endpoint: str, queries: Sequence[str], page_size: int = 50
) -> tuple[DatasetJob, DatasetPaths]:
    """A job into `folder` whose one source is the server at `endpoint`, asked without delay."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "queries.txt"
    file.write_text("".join(f"{query}\n" for query in queries))
    commons = CommonsConfig(
        enabled=True, endpoint=endpoint, page_size=page_size, requests_per_second=1000.0
    )
    sources = SourcesConfig(contact=CONTACT, timeout_s=10.0, max_attempts=3, commons=commons)
    job = DatasetJob(
        out_dir=str(folder / "out"), queries=QueriesConfig(path=str(file)), sources=sources
    )
    return job, DatasetPaths(Path(job.out_dir))

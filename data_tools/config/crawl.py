"""Settings of the crawl stage: the guard, img2dataset, and what an image becomes."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from data_tools.ground.fields import (
    at_least,
    between,
    more_than,
    not_hashed,
    null_hashed_as,
    out_of_bounds,
)


class ResizeMode(Enum):
    """img2dataset's words for what happens to an image on its way into a shard."""

    no = "no"
    border = "border"
    keep_ratio = "keep_ratio"
    keep_ratio_largest = "keep_ratio_largest"
    center_crop = "center_crop"


# Options of img2dataset 1.47 that pass through crawl.img2dataset, and their type.
IMG2DATASET_OPTIONS: dict[str, type] = {
    "resize_only_if_bigger": bool,
    "upscale_interpolation": str,
    "downscale_interpolation": str,
    "skip_reencode": bool,
    "extract_exif": bool,
}
INTERPOLATIONS = (
    *("nearest", "linear", "bilinear", "cubic", "bicubic", "area"),
    *("lanczos", "lanczos4"),
)
# The others are decided elsewhere, and said twice they could disagree.
_BY_THE_DRIVER = "the driver decides it"
_BY_THE_GUARD = "img2dataset talks to the guard only"
IMG2DATASET_OWNED: dict[str, str] = {
    "image_size": "give crawl.image_size",
    "resize_mode": "give crawl.resize_mode",
    "encode_quality": "give crawl.encode_quality",
    "encode_format": "shards hold JPEG",
    "disable_all_reencoding": "shards hold JPEG; give crawl.resize_mode=no and skip_reencode=true",
    "processes_count": "give crawl.processes",
    "thread_count": "give crawl.threads",
    "number_sample_per_shard": "give crawl.samples_per_part",
    "bbox_col": "give crawl.face_boxes.paths",
    "min_image_size": "give crawl.min_image_side, which is judged before decoding",
    "max_image_area": "give crawl.max_image_pixels, which is judged before decoding",
    "max_aspect_ratio": "give crawl.max_image_aspect, which is judged before decoding",
    "timeout": "give crawl.timeout_s",
    "retries": "the guard retries; for another round give crawl.retry_rounds",
    "user_agent_token": "give sources.contact",
    "disallowed_header_directives": "give crawl.respect_robots_txt",
    "compute_hash": "the guard hashes what the site sent",
    "verify_hash": "the guard hashes what the site sent",
    "url_list": _BY_THE_DRIVER,
    "url_col": _BY_THE_DRIVER,
    "caption_col": _BY_THE_DRIVER,
    "input_format": _BY_THE_DRIVER,
    "output_folder": _BY_THE_DRIVER,
    "output_format": _BY_THE_DRIVER,
    "save_additional_columns": _BY_THE_DRIVER,
    "oom_shard_count": _BY_THE_DRIVER,
    "incremental_mode": _BY_THE_DRIVER,
    "max_shard_retry": _BY_THE_DRIVER,
    "distributor": "parts are divided by --task I/N",
    "subjob_size": "parts are divided by --task I/N",
    "enable_wandb": _BY_THE_GUARD,
    "wandb_project": _BY_THE_GUARD,
}


@dataclass(kw_only=True, slots=True)
class FaceBoxesConfig:
    """Tables that say where in each image the faces are, as DataComp publishes them; those faces
    are blurred by img2dataset. An image that no table knows is not stored."""

    paths: list[str] = field(default_factory=list)
    """Parquet files or glob patterns; empty: nothing is blurred."""
    url_column: str = "url"
    """Column that holds the address of the image."""
    boxes_column: str = "face_bboxes"
    """Lists of [x_min, y_min, x_max, y_max], each from 0 to 1."""


@dataclass(kw_only=True, slots=True)
class CrawlConfig:
    image_size: int = at_least(16, default=256)
    """Size in pixels that resize_mode aims at. 256 leaves a margin for a 224 px random crop."""
    resize_mode: ResizeMode = ResizeMode.keep_ratio
    """keep_ratio: the short side becomes image_size. Smaller images are not enlarged."""
    encode_quality: int = between(1, 100, default=95)
    """JPEG quality, 1..100."""
    img2dataset: dict[str, Any] = field(default_factory=dict)
    """Further options of img2dataset by its own names; those the driver owns are refused."""
    face_boxes: FaceBoxesConfig = field(default_factory=FaceBoxesConfig)
    """Faces that are blurred."""
    processes: int = at_least(1, default=2)
    """img2dataset worker processes; each decodes on one core (about 80 images/s/core of 110 kB
    JPEGs)."""
    threads: int = at_least(1, default=128)
    """Simultaneous downloads over all processes. One that waits for a slow site costs a thread and
    no CPU: with 32, a list with a tenth of slow sites is fetched at the pace of those."""
    samples_per_part: int = at_least(1, default=10000)
    """URLs that one run of img2dataset takes; the unit of resuming a crawl."""
    retry_rounds: Optional[int] = null_hashed_as(
        0, at_least(0, default=None, null="asks once more, as 1 does")
    )
    """Rounds after all parts in which the URLs are crawled again that failed for a reason that may
    pass (timeout, no connection, a busy host, HTTP 429 or 5xx). Null, the default, is one round; a
    data set that was finished when the default was 0 stays as it is. 0 tries none again."""
    max_host_wait_s: float = not_hashed(at_least(0, default=600.0))
    """Seconds that a URL waits at most, in the last round, for its host's turn: a Crawl-delay of
    20 s in robots.txt and 30 URLs of that host in a part are 580 s. URLs that would wait longer are
    failed:host_busy, and the summary and the report name their hosts. In the rounds before the last
    a URL waits 60 s at most, because the next round asks for it again."""
    timeout_s: float = at_least(0.1, default=20.0)
    """Seconds for one URL in all: robots.txt, connecting, redirects, body and further attempts."""
    connect_timeout_s: float = at_least(0.1, default=5.0)
    """Seconds for one attempt to reach a host."""
    min_bytes_per_s: Optional[int] = null_hashed_as(
        0, at_least(1, default=1000, null="gives up none")
    )
    """Bytes per second below which, over five seconds, a body is given up as a timeout. Null gives
    up none."""
    connections_per_host: int = at_least(1, default=8)
    """Simultaneous downloads from one host, per task."""
    requests_per_host_per_s: Optional[float] = null_hashed_as(
        0.0, more_than(0, default=10.0, null="sets no limit")
    )
    """Requests per second to one host, per task; a Crawl-delay in its robots.txt lowers it. Null
    sets no limit."""
    max_image_bytes: int = at_least(1, default=25_000_000)
    """Largest size of one body in bytes, both as sent and as inflated."""
    max_image_pixels: int = at_least(1, default=50_000_000)
    """Checked in the file's header, before anything is decoded; so are the next three."""
    min_image_side: int = at_least(1, default=8)
    """Pixels; refuses tracking pixels and spacers. What is too small to train on is
    curate.min_side's."""
    max_image_side: int = 20_000
    """Longest side in pixels; larger images are refused."""
    max_image_aspect: float = at_least(1, default=20.0)
    """Longer side over shorter."""
    stall_timeout_s: float = at_least(1, default=300.0)
    """img2dataset is stopped, and the part reported, when nothing was finished for this long, and
    no URL waited for its host's turn."""
    allow_private: list[str] = field(default_factory=list)
    """host:port pairs that may be fetched although their address is private or loopback. Everything
    else private is refused."""
    respect_robots_txt: bool = True
    """robots.txt and the X-Robots-Tag header."""
    respect_tdm_reservation: bool = True
    """The header tdm-reservation: 1 and the file /.well-known/tdmrep.json, by which a site reserves
    text and data mining."""


def retry_rounds(config: CrawlConfig) -> int:
    """Rounds after the first."""
    return 1 if config.retry_rounds is None else config.retry_rounds


def problems(config: CrawlConfig) -> list[str]:
    found = out_of_bounds(config, "crawl")
    if config.max_image_side < config.min_image_side:
        found.append(
            f"crawl.max_image_side = {config.max_image_side}: must be >= {config.min_image_side}"
        )
    found += [
        f"crawl.allow_private: '{entry}' is not host:port"
        for entry in config.allow_private
        if not _is_host_and_port(entry)
    ]
    return found + _option_problems(config)


def _is_host_and_port(entry: str) -> bool:
    host, _, port = entry.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _option_problems(config: CrawlConfig) -> list[str]:
    found = []
    for name, value in config.img2dataset.items():
        if name in IMG2DATASET_OWNED:
            found.append(f"crawl.img2dataset.{name}: {IMG2DATASET_OWNED[name]}")
        elif name not in IMG2DATASET_OPTIONS:
            found.append(
                f"crawl.img2dataset.{name}: img2dataset has no such option; there are "
                + ", ".join(IMG2DATASET_OPTIONS)
            )
        elif not isinstance(value, IMG2DATASET_OPTIONS[name]):
            found.append(
                f"crawl.img2dataset.{name} = {value}: give a {IMG2DATASET_OPTIONS[name].__name__}"
            )
        elif name.endswith("interpolation") and str(value).lower() not in INTERPOLATIONS:
            found.append(
                f"crawl.img2dataset.{name} = {value}: give one of {', '.join(INTERPOLATIONS)}"
            )
    if config.img2dataset.get("skip_reencode") and config.face_boxes.paths:
        found.append(
            "crawl.img2dataset.skip_reencode = True: img2dataset stores small images as they came, "
            "with their faces; leave it out or leave out crawl.face_boxes"
        )
    return found

"""Settings of the crawl stage: the guard, img2dataset, and what an image becomes."""

from dataclasses import dataclass, field
from enum import Enum

from data_tools.config.problems import below


class ResizeMode(Enum):
    """img2dataset's words for what happens to an image on its way into a shard."""

    no = "no"
    border = "border"
    keep_ratio = "keep_ratio"
    keep_ratio_largest = "keep_ratio_largest"
    center_crop = "center_crop"


@dataclass(kw_only=True, slots=True)
class CrawlConfig:
    image_size: int = 256
    """Pixels; what resize_mode makes of it. 256 leaves a margin for a 224 px random crop."""
    resize_mode: ResizeMode = ResizeMode.keep_ratio
    """keep_ratio: the short side becomes image_size. Smaller images are not enlarged."""
    encode_quality: int = 95
    """JPEG quality, 1..100."""
    processes: int = 2
    """img2dataset worker processes; each decodes on one core (about 80 images/s/core of 110 kB
    JPEGs)."""
    threads: int = 32
    """Downloads at a time, over all processes."""
    samples_per_part: int = 10000
    """URLs that one run of img2dataset takes; the unit of resuming a crawl."""
    timeout_s: float = 20.0
    """For one URL in all: connect, redirects, body, further attempts."""
    connections_per_host: int = 8
    """Downloads at a time from one host."""
    max_image_bytes: int = 25_000_000
    max_image_pixels: int = 50_000_000
    """Checked in the file's header, before anything is decoded."""
    stall_timeout_s: float = 300.0
    """img2dataset is stopped, and the part reported, when nothing was finished for this long."""
    allow_private: list[str] = field(default_factory=list)
    """host:port pairs that may be fetched although their address is private or loopback. Everything
    else private is refused."""
    respect_robots_txt: bool = True


def problems(config: CrawlConfig) -> list[str]:
    found = below(
        [
            ("crawl.image_size", config.image_size, 16),
            ("crawl.processes", config.processes, 1),
            ("crawl.threads", config.threads, 1),
            ("crawl.samples_per_part", config.samples_per_part, 1),
            ("crawl.timeout_s", config.timeout_s, 0.1),
            ("crawl.connections_per_host", config.connections_per_host, 1),
            ("crawl.stall_timeout_s", config.stall_timeout_s, 1),
        ]
    )
    if not 1 <= config.encode_quality <= 100:
        found.append(f"crawl.encode_quality = {config.encode_quality}: give 1 to 100")
    found += [
        f"crawl.allow_private: '{entry}' is not host:port"
        for entry in config.allow_private
        if not entry.rpartition(":")[2].isdigit()
    ]
    return found

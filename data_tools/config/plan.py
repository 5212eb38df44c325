"""What `python -m data_tools.plan` reckons with, where it cannot know: published figures of large
crawls by img2dataset."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    images_per_s_per_core: float = at_least(0.001, default=60.0)
    """LAION-5B: 9,500 a second on 160 cores, over seven days. The README's 18 million on 16 cores:
    84; CC12M, of large images: 39."""
    download_bytes_per_pair: int = at_least(1, default=96_000)
    """130 MB/s at 1,350 images a second (img2dataset's README)."""
    disk_bytes_per_pair: int = at_least(1, default=25_000)
    """LAION-400M at 256 px: 10 TB for 400 million. Other crawl.image_size: in proportion to the
    area."""


def problems(config: PlanConfig) -> list[str]:
    return out_of_bounds(config, "plan")

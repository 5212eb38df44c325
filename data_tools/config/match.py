"""Settings of the match stage: captions of pools against the query list, and the merge after it."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class MatchConfig:
    processes: int = at_least(1, default=1)
    """On this machine; each holds the queries (about 0.4 GB at 500,000)."""
    case_sensitive: bool = False
    """Compare queries as they are written. The list holds one of "Turkey" and "turkey" (the
    first)."""
    max_caption_chars: int = at_least(1, default=10_000)
    """Longer captions are counted (pool_too_long) and left out."""
    unit_bytes: int = at_least(1000000, default=256_000_000)
    """Of a parquet file that are one unit of work, of resuming and of sharing over tasks; a larger
    file is several. Files of other formats are one unit each."""
    merge_memory_gb: float = at_least(0.1, default=2.0)
    """For the merge of candidates, about; what is more waits on disk, below out_dir."""


def problems(config: MatchConfig) -> list[str]:
    return out_of_bounds(config, "match")

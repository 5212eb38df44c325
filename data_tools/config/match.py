"""Settings of the match stage: captions of pools against the query list, and the merge after it."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class MatchConfig:
    processes: int = at_least(1, default=1)
    """Processes on this machine; each holds the queries (about 0.4 GB at 500,000)."""
    case_sensitive: bool = False
    """Compare queries as they are written. The list holds one of "Turkey" and "turkey" (the
    first)."""
    max_caption_chars: int = at_least(1, default=10_000)
    """Longest caption, in characters; longer ones are counted (pool_too_long) and left out."""
    unit_bytes: int = at_least(1000000, default=256_000_000)
    """Bytes of a parquet file that make one unit: the amount of work that is resumed and shared
    over tasks. A larger file is several units. Files of other formats are one unit each."""
    merge_memory_gb: float = at_least(0.1, default=2.0)
    """Approximate memory in GB for the merge of candidates; the rest waits on disk, below
    out_dir."""


def problems(config: MatchConfig) -> list[str]:
    return out_of_bounds(config, "match")

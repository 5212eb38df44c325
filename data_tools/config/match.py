"""Settings of the match stage: captions of pools against the query list, and the merge after it."""

from dataclasses import dataclass

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class MatchConfig:
    processes: int = 1
    """On this machine; each holds the queries (about 0.4 GB at 500,000)."""
    case_sensitive: bool = False
    """Compare queries as they are written. The list holds one of "Turkey" and "turkey" (the
    first)."""
    max_caption_chars: int = 10_000
    """Longer captions are counted (pool_too_long) and left out."""
    unit_bytes: int = 256_000_000
    """Of a parquet file that are one unit of work, of resuming and of sharing over tasks; a larger
    file is several. Files of other formats are one unit each."""
    merge_memory_gb: float = 2.0
    """For the merge of candidates, about; what is more waits on disk, below out_dir."""


def problems(config: MatchConfig) -> list[str]:
    return below(
        [
            ("match.processes", config.processes, 1),
            ("match.max_caption_chars", config.max_caption_chars, 1),
            ("match.unit_bytes", config.unit_bytes, 1_000_000),
            ("match.merge_memory_gb", config.merge_memory_gb, 0.1),
        ]
    )

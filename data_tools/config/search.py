"""Settings of the search stage: how queries are put to the enabled search sources."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    limit_per_query: int = at_least(1, default=200)
    """Candidates that a source is asked for, per query."""
    give_up_after: int = at_least(1, default=5)
    """Consecutive requests that fail for good after which the search stops: the server is down."""
    max_failed_queries: int = at_least(0, default=0)
    """Queries that may stay without an answer while the stage still counts as done. With more, it
    ends with an error, and the same command asks for these again. 0 allows none."""
    deficit_only: bool = False
    """Ask only for queries that found fewer than balance.max_per_query captions in the pools."""


def problems(config: SearchConfig) -> list[str]:
    return out_of_bounds(config, "search")

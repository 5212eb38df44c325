"""Settings of the search stage: how queries are put to the enabled search sources."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    limit_per_query: int = at_least(1, default=200)
    """Candidates asked of a source for one query."""
    give_up_after: int = at_least(1, default=5)
    """Consecutive requests that failed for good before the search stops: the server is down."""
    max_failed_queries: int = at_least(0, default=0)
    """Queries that may stay without an answer for the stage to count as done. With more, it ends as
    an error, and the same command asks for these again; once done, a lower number does."""
    deficit_only: bool = False
    """Ask only for queries that found fewer than balance.max_per_query captions in the pools."""


def problems(config: SearchConfig) -> list[str]:
    return out_of_bounds(config, "search")

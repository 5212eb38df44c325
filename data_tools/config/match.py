"""Settings of the match stage: captions of pools against the query list."""

from dataclasses import dataclass

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class MatchConfig:
    processes: int = 1
    """On this machine; each holds the automaton (about 0.5 GB at 500,000 queries)."""


def problems(config: MatchConfig) -> list[str]:
    return below([("match.processes", config.processes, 1)])

"""Settings of the balance stage: how many pairs a query may keep."""

from dataclasses import dataclass

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class BalanceConfig:
    max_per_query: int = 20000
    """t of CLIP and MetaCLIP: a query with more candidates has them thinned to about this
    number."""
    seed: int = 0


def problems(config: BalanceConfig) -> list[str]:
    return below([("balance.max_per_query", config.max_per_query, 1)])

"""Settings of the balance stage: how many pairs a query may keep."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, between, out_of_bounds


@dataclass(kw_only=True, slots=True)
class BalanceConfig:
    max_per_query: int = at_least(0, default=20000)
    """t of CLIP and MetaCLIP: a query with more candidates than this keeps about this many. With 0,
    target_pairs or tail_share chooses t."""
    target_pairs: int = at_least(0, default=0)
    """Number of pairs wanted: the smallest t that gives as many is taken. 0: not used."""
    tail_share: float = between(
        0, 1, high_open=True, default=0.0, advice="give 0 to below 1, such as 0.06"
    )
    """Share of all matches that should belong to queries with fewer than t candidates; the smallest
    t that gives it is taken. MetaCLIP's t of 20,000 and of 170,000 both gave 0.06 on their pools.
    0: not used."""
    expected_survival: float = between(0, 1, low_open=True, default=1.0)
    """Share of the kept pairs that crawl and curation will leave, as an earlier run measured it;
    correspondingly more are kept before the crawl. The second balancing uses what did survive."""
    seed: int = 0
    """Seed of the draw that decides which candidates stay."""


def problems(config: BalanceConfig) -> list[str]:
    found = out_of_bounds(config, "balance")
    ways = {
        "max_per_query": config.max_per_query,
        "target_pairs": config.target_pairs,
        "tail_share": config.tail_share,
    }
    given = [f"balance.{name} = {value}" for name, value in ways.items() if value > 0]
    if len(given) > 1:
        found.append(f"{' and '.join(given)}: each decides t; keep one, set the others to 0")
    if not given:
        found.append(
            "balance.max_per_query = 0: t is to be chosen by something; add "
            "balance.target_pairs=N or balance.tail_share=0.06"
        )
    return found

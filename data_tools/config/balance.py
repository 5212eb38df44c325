"""Settings of the balance stage: how many pairs a query may keep."""

from dataclasses import dataclass
from typing import Optional

from data_tools.ground.fields import at_least, between, null_hashed_as, out_of_bounds


@dataclass(kw_only=True, slots=True)
class BalanceConfig:
    max_per_query: Optional[int] = null_hashed_as(
        0, at_least(1, default=20000, null="leaves t to target_pairs or tail_share")
    )
    """t of CLIP and MetaCLIP: a query with more candidates than this keeps about this many. Null:
    target_pairs or tail_share chooses t."""
    target_pairs: Optional[int] = null_hashed_as(0, at_least(1, default=None))
    """Number of pairs wanted: the smallest t that gives as many is taken. Null: not used."""
    tail_share: Optional[float] = null_hashed_as(
        0.0,
        between(
            0,
            1,
            low_open=True,
            high_open=True,
            default=None,
            advice="give more than 0, below 1, such as 0.06",
        ),
    )
    """Share of all matches that should belong to queries with fewer than t candidates; the smallest
    t that gives it is taken. MetaCLIP's t of 20,000 and of 170,000 both gave 0.06 on their pools.
    Null: not used."""
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
    given = [f"balance.{name} = {value}" for name, value in ways.items() if value]
    if len(given) > 1:
        found.append(f"{' and '.join(given)}: each decides t; keep one, set the others to null")
    if not given:
        found.append(
            "balance.max_per_query = null: t is to be chosen by something; add "
            "balance.target_pairs=N or balance.tail_share=0.06"
        )
    return found

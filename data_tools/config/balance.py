"""Settings of the balance stage: how many pairs a query may keep."""

from dataclasses import dataclass

from data_tools.ground.fields import at_least, between, out_of_bounds


@dataclass(kw_only=True, slots=True)
class BalanceConfig:
    max_per_query: int = at_least(0, default=20000)
    """t of CLIP and MetaCLIP: a query with more candidates has them thinned to about this number.
    0: chosen by target_pairs or by tail_share."""
    target_pairs: int = at_least(0, default=0)
    """Pairs that the data set shall have: the smallest t is taken that gives as many."""
    tail_share: float = between(
        0, 1, high_open=True, default=0.0, advice="give 0 to below 1, such as 0.06"
    )
    """Share of all matches that queries with fewer than t candidates shall have. MetaCLIP's t of
    20,000 and of 170,000 both gave 0.06 on their pools; the smallest t is taken that gives it."""
    expected_survival: float = between(0, 1, low_open=True, default=1.0)
    """Share of the kept pairs that crawl and curation will leave, as an earlier run measured it:
    so many more are kept before the crawl. The second balancing goes by what did survive."""
    seed: int = 0


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

"""Rules on the numbers of a single image, as SQL conditions over the view `live`.

Caption rules are in captions.py; rules that compare pictures are in duplicates.py and
contamination.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from data_tools.config import CurateConfig


@dataclass(frozen=True)
class Rule:
    reason: str
    """Follows "rejected:" in the ledger."""
    condition: str
    """SQL that is true for a row to reject."""
    detail: str
    """SQL for the text that says which value broke the rule."""


_SIDES = "original_width || ' x ' || original_height"
_SHORTER = "least(original_width, original_height)"
_LONGER = "greatest(original_width, original_height)"


def metadata_rules(config: CurateConfig) -> list[Rule]:
    """Rules that need no pixels. Sides are those of the original, before the crawl made it
    smaller."""
    rules = []
    if config.drop_mature:
        rules.append(Rule("mature", "mature", "source || ' flags it'"))
    if config.min_side is not None:
        rules.append(
            Rule(
                "image_small",
                f"{_SHORTER} < {config.min_side}",
                f"{_SIDES} || ': shorter side < {config.min_side}'",
            )
        )
    if config.max_aspect_ratio is not None:
        limit = config.max_aspect_ratio
        rules.append(
            Rule(
                "image_aspect",
                f"{_LONGER}::DOUBLE > {_SHORTER} * {limit}::DOUBLE",
                f"{_SIDES} || ': aspect ratio > {limit:g}'",
            )
        )
    return rules


def pixel_rules(config: CurateConfig) -> list[Rule]:
    """Rules on the view `seen`, which is `live` with the columns of FEATURES."""
    if config.min_grey_std is None:
        return []
    limit = config.min_grey_std
    return [
        Rule(
            "image_constant",
            f"grey_std < {limit}",
            f"'deviation of grey levels ' || round(grey_std, 2) || ' < {limit:g}'",
        )
    ]


def apply_rule(database: duckdb.DuckDBPyConnection, rule: Rule, view: str) -> None:
    database.execute(
        f"INSERT INTO rejected SELECT uid, '{rule.reason}', {rule.detail} FROM {view} "
        f"WHERE {rule.condition}"
    )

"""What a pair must be to be trained on. A rule marks the rows that break it; the first rule that
marks a row names its fate.

A rule is a function (pairs, config) -> boolean array, over a table with the columns of CURATED; it
works on whole columns, so that 10^8 rows are a matter of minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import CurateConfig

Rule = Callable[[pa.Table, CurateConfig], pa.ChunkedArray]


def caption_short(pairs: pa.Table, config: CurateConfig) -> pa.ChunkedArray:
    return pc.less(pc.utf8_length(pairs["caption"]), config.min_caption_chars)


def caption_long(pairs: pa.Table, config: CurateConfig) -> pa.ChunkedArray:
    return pc.greater(pc.utf8_length(pairs["caption"]), config.max_caption_chars)


def image_small(pairs: pa.Table, config: CurateConfig) -> pa.ChunkedArray:
    """Of the original: the stored image was made smaller."""
    return pc.less(_shorter_side(pairs), config.min_side)


def image_aspect(pairs: pa.Table, config: CurateConfig) -> pa.ChunkedArray:
    longer = pc.max_element_wise(pairs["original_width"], pairs["original_height"])
    limit = pc.multiply(pc.cast(_shorter_side(pairs), pa.float64()), config.max_aspect_ratio)
    return pc.greater(pc.cast(longer, pa.float64()), limit)


def _shorter_side(pairs: pa.Table) -> pa.ChunkedArray:
    return pc.min_element_wise(pairs["original_width"], pairs["original_height"])


# In the order they are asked: cheap and telling first. The key follows "rejected:" in the ledger.
RULES: dict[str, Rule] = {
    "caption_short": caption_short,
    "caption_long": caption_long,
    "image_small": image_small,
    "image_aspect": image_aspect,
}


def duplicates(pairs: pa.Table) -> pa.ChunkedArray:
    """Marks all but one of the rows with equal (sha256 of the original, caption): the one with the
    smallest uid stays, whatever the order of the table."""
    first = pairs.group_by(["sha256", "caption"]).aggregate([("uid", "min")])
    return pc.invert(pc.is_in(pairs["uid"], value_set=first["uid_min"]))

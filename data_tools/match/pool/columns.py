"""Which column of a file is the URL, which the caption, and so on; and their values in one type per
role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from data_tools.config import PoolConfig

ROLES = ("url", "caption", "width", "height", "license", "page_url", "mature")
NUMBER = r"\A\s*[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?\s*\z"
# LAION's words, and words for true and false. Any other word, such as LAION's UNSURE, is unknown.
MATURE_WORDS = ("nsfw", "true", "yes", "t", "y")
HARMLESS_WORDS = ("unlikely", "sfw", "false", "no", "f", "n")


@dataclass
class Batch:
    """Columns by role, and what is not among them."""

    columns: dict[str, pa.Array]
    num_broken: int = 0
    """Broken rows."""
    num_more_captions: int = 0
    """A row with several captions becomes several rows; how many more these are than the rows."""
    num_in_quotes: int = 0
    """Captions that begin and end with a double quote, where quotes are text by default."""


def choose_columns(config: PoolConfig, present: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(role -> the file's column, the settings that name no column of the file)."""
    chosen, missing = {}, []
    for role in ROLES:
        usable = [name for name in alternatives(config, role) if name == "" or name in present]
        if not usable:
            setting = f"{role}_column"
            missing.append(f"sources.pool.{setting} = '{getattr(config, setting)}'")
        elif usable[0]:
            chosen[role] = usable[0]
    return chosen, missing


def alternatives(config: PoolConfig, role: str) -> list[str]:
    """The column names that may hold a role, in the order in which they are tried; "" is none."""
    return (getattr(config, f"{role}_column") or "").split("|")


def repeated(chosen: dict[str, str], present: Sequence[str]) -> list[str]:
    """The chosen columns that are there more than once, as problems."""
    times = Counter(present)
    return [
        f"the column {name} ({role}) is there {times[name]} times: rename all but one"
        for role, name in chosen.items()
        if times[name] > 1
    ]


def converted(config: PoolConfig, columns: dict[str, pa.Array]) -> Batch:
    """A batch of columns as a file has them, in the types of their roles. A row whose caption is a
    list of texts becomes one row per text, an empty list a null."""
    num_rows = len(columns["url"])
    if is_list(columns["caption"].type):
        columns = _one_caption_a_row(columns)
    batch = Batch({role: convert(config, role, values) for role, values in columns.items()})
    batch.num_more_captions = len(batch.columns["url"]) - num_rows
    return batch


def _one_caption_a_row(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    lists = columns["caption"].cast(pa.list_(columns["caption"].type.value_type))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    texts = lists.flatten()
    row = np.repeat(np.arange(len(lists)), np.maximum(lengths, 1))
    full = pa.array(lengths[row] > 0)
    place = pc.if_else(full, pa.array(np.cumsum(lengths[row] > 0) - 1), None)
    rows = pa.array(row)
    columns = {role: column.take(rows) for role, column in columns.items() if role != "caption"}
    return columns | {"caption": texts.take(place)}


def convert(config: PoolConfig, role: str, values: pa.Array) -> pa.Array:
    """A column's values in the type of its role. url, caption: binary; width, height: int32 or
    null; mature: bool or null; others: string."""
    if pt.is_dictionary(values.type):
        values = values.dictionary_decode()
    if role in ("url", "caption"):
        return values.cast(pa.binary())
    if role in ("width", "height"):
        return _as_pixels(values)
    if role == "mature":
        return _as_mature(values, config.mature_above)
    return pc.fill_null(_as_text(values), "")


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are lists."""
    return any(
        test(kind)
        for test in (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view)
    )


def may_be_caption(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are texts, or lists of them."""
    return is_text(kind.value_type if is_list(kind) else kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are text, also as bytes or as a dictionary; or null, the
    type of a part in which no row has a value."""
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind)
        for test in (
            pt.is_null,
            pt.is_string,
            pt.is_large_string,
            pt.is_string_view,
            pt.is_binary,
            pt.is_large_binary,
            pt.is_binary_view,
        )
    )


def _as_text(values: pa.Array) -> pa.Array:
    """The values as string. Lists and structs become null; bytes that are not UTF-8 are
    replaced."""
    if not is_text(values.type):
        try:
            return values.cast(pa.string())
        except pa.ArrowException:  # a list, a struct
            return pa.nulls(len(values), pa.string())
    raw = values.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [
            None if value is None else value.decode(errors="replace") for value in raw.to_pylist()
        ]
        return pa.array(texts, pa.string())


def _as_numbers(values: pa.Array) -> np.ndarray:
    """float64; nan for values that are no number."""
    if is_text(values.type):
        texts = _as_text(values)
        numeric = pc.fill_null(pc.match_substring_regex(texts, NUMBER), False)
        texts = pc.if_else(numeric, pc.utf8_trim_whitespace(texts), pa.scalar(None, pa.string()))
        values = texts
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        numbers = pa.nulls(len(values), pa.float64())
    return numbers.to_numpy(zero_copy_only=False)


def _as_pixels(values: pa.Array) -> pa.Array:
    numbers = _as_numbers(values)
    with np.errstate(invalid="ignore"):
        usable = (numbers >= 1) & (numbers < 2**31)
    return pa.array(np.where(usable, numbers, 0).astype(np.int32), mask=~usable)


def _as_mature(values: pa.Array, above: float) -> pa.Array:
    if pt.is_boolean(values.type):
        return values
    numbers = _as_numbers(values)
    mature, known = numbers > above, ~np.isnan(numbers)
    if is_text(values.type):
        words = pc.utf8_lower(pc.utf8_trim_whitespace(_as_text(values)))
        for group, answer in ((MATURE_WORDS, True), (HARMLESS_WORDS, False)):
            said = pc.is_in(words, pa.array(group)).to_numpy(zero_copy_only=False)
            mature, known = np.where(said, answer, mature), known | said
    return pa.array(mature, mask=~known)

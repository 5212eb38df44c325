"""Cleans the rows of a pool, as Arrow columns: rows that cannot be used are left out and
counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_tools.tables.schema import CANONICAL_URL, canonical_url

# All white space of str.split() that is not a single space between two characters. RE2's \s matches
# ASCII only.
UNTIDY = (
    r"\A | \z|  |[\t-\r\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
    r"\x{205f}\x{3000}]"
)
HTTP = r"(?i)\Ahttps?://"


@dataclass
class RowCounts:
    """What became of the rows of a pool; the other fields add up to `rows` + `more_captions`."""

    rows: int = 0
    more_captions: int = 0
    """Captions beyond the first of rows that hold several; each is a pair of its own."""
    null: int = 0
    """Rows without a URL or a caption."""
    unreadable: int = 0
    """Broken rows, cells of another type, text that is not UTF-8."""
    not_http: int = 0
    too_long: int = 0
    """Captions above match.max_caption_chars."""
    unusable_urls: int = 0
    """URLs that begin with http(s), but are no address: "http://[x"."""
    unmatched: int = 0
    matched: int = 0

    def add(self, other: RowCounts) -> None:
        """Add the counts of other rows."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Usable:
    """Columns of the usable rows, and counts of the others."""

    columns: dict[str, pa.Array]
    counts: RowCounts = field(default_factory=RowCounts)
    largest_cell: int = 0
    """Bytes of the longest URL or caption of all rows."""


def usable(columns: dict[str, pa.Array], max_caption_chars: int) -> Usable:
    """The usable rows of `columns`. `url` and `caption` are given as binary; they come back as
    string, trimmed and single-spaced. The other columns keep their type."""
    result = Usable(columns, RowCounts(rows=len(columns["url"])))
    counts = result.counts
    for name in ("url", "caption"):
        lengths = pc.binary_length(result.columns[name])
        result.largest_cell = max(result.largest_cell, pc.max(lengths).as_py() or 0)
        counts.null += _keep(result, pc.fill_null(pc.greater(lengths, 0), False))
    for name in ("url", "caption"):
        text, valid = _decoded(result.columns[name])
        result.columns[name] = text
        counts.unreadable += _keep(result, valid)
    result.columns["url"] = single_spaced(result.columns["url"], trim_only=True)
    counts.not_http += _keep(result, pc.match_substring_regex(result.columns["url"], HTTP))
    lengths = pc.utf8_length(result.columns["caption"])
    counts.too_long += _keep(result, pc.less_equal(lengths, max_caption_chars))
    result.columns["caption"] = single_spaced(result.columns["caption"])
    counts.null += _keep(result, pc.greater(pc.binary_length(result.columns["caption"]), 0))
    return result


def with_uids(columns: dict[str, pa.Array]) -> Usable:
    """Add the column `uid`, equal to `make_uid(url, caption)` of each row. Rows whose URL is no
    address are left out."""
    result = Usable(dict(columns))
    urls = columns["url"]
    odd = pc.invert(pc.match_substring_regex(urls, rf"\A(?:{CANONICAL_URL})\z"))
    if pc.any(odd).as_py():
        canonical = [_canonical(url) for url in urls.filter(odd).to_pylist()]
        urls = pc.replace_with_mask(urls, odd, pa.array(canonical, pa.string()))
        result.columns["canonical"] = urls
        result.counts.unusable_urls = _keep(result, pc.is_valid(urls))
        urls = result.columns.pop("canonical")
    keys = pc.binary_join_element_wise(urls, result.columns["caption"], "\n")
    content = memoryview(keys.buffers()[2] or b"")
    at = np.frombuffer(keys.buffers()[1], np.int32, len(keys) + 1, keys.offset * 4).tolist()
    digest = xxhash.xxh3_128_hexdigest
    uids = [digest(content[start:stop]) for start, stop in zip(at, at[1:])]
    result.columns["uid"] = pa.array(uids, pa.string())
    return result


def single_spaced(texts: pa.Array, trim_only: bool = False) -> pa.Array:
    """`" ".join(text.split())` of every text (string, no nulls), or `text.strip()` if
    `trim_only`."""
    untidy = pc.match_substring_regex(texts, UNTIDY)
    if not pc.any(untidy).as_py():
        return texts
    values = texts.filter(untidy).to_pylist()
    tidy = [text.strip() if trim_only else " ".join(text.split()) for text in values]
    return pc.replace_with_mask(texts, untidy, pa.array(tidy, pa.string()))


def _keep(result: Usable, mask: pa.Array) -> int:
    """Keep only the rows where `mask` is true; returns how many were left out."""
    num_dropped = len(mask) - (pc.sum(mask).as_py() or 0)
    if num_dropped:
        result.columns = {name: column.filter(mask) for name, column in result.columns.items()}
    return num_dropped


def _decoded(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(values as strings, bool: which of them are UTF-8)."""
    try:
        return values.cast(pa.string()), pa.array(np.ones(len(values), bool))
    except pa.ArrowInvalid:  # some value is not UTF-8, and Arrow does not say which
        texts = pa.array([_text(value) for value in values.to_pylist()], pa.string())
        return texts, pc.is_valid(texts)


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _canonical(url: str) -> str | None:
    try:
        return canonical_url(url)
    except ValueError:
        return None

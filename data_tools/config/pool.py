"""Settings of the pools: tables of (url, caption) at hand."""

from dataclasses import dataclass, field
from typing import Any, Optional

from data_tools.ground.fields import at_least, not_empty, null_hashed_as, out_of_bounds


@dataclass(kw_only=True, slots=True)
class PoolConfig:
    """Parquet, csv, tsv, jsonl or json, also .gz .zst .bz2 .xz of the last four. conf/pool/ has the
    columns of published pools: pool=laion.

    A column is named as the files have it. `URL|url` takes the first of the two that a file has, so
    that one job can read pools of several layouts; an empty name is no column, so that `WIDTH|` may
    be absent.
    """

    enabled: bool = False
    """Read the pools in paths."""
    paths: list[str] = field(default_factory=list)
    """Files or glob patterns, local or any address that fsspec opens (s3://, https://, ...)."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """For fsspec, such as {anon: true}. Keys and secrets come from the environment: these options
    are written into config.yaml."""
    url_column: str = "url"
    """Column that holds the address of the image."""
    caption_column: str = "caption"
    """Column that holds the caption."""
    width_column: Optional[str] = null_hashed_as("", not_empty(default=None, null="is none"))
    """Column that holds the image's width in pixels; null: none."""
    height_column: Optional[str] = null_hashed_as("", not_empty(default=None, null="is none"))
    """Column that holds the image's height in pixels; null: none."""
    license_column: Optional[str] = null_hashed_as("", not_empty(default=None, null="is none"))
    """Column that holds the image's licence; null: none."""
    page_url_column: Optional[str] = null_hashed_as("", not_empty(default=None, null="is none"))
    """Column that holds the address of the page that shows the image; null: none."""
    mature_column: Optional[str] = null_hashed_as("", not_empty(default=None, null="is none"))
    """Column with a truth value, a word (LAION's NSFW / UNSURE / UNLIKELY), or a score; null:
    none."""
    mature_above: float = at_least(0, default=0.5)
    """The score above which an image counts as mature."""
    license: Optional[str] = null_hashed_as("", not_empty(default=None, null="is unknown"))
    """Licence of every candidate whose license_column is empty or absent, as the pool's publisher
    states it; null: unknown."""
    column_names: list[str] = field(default_factory=list)
    """Names of the columns, in their order, of csv and tsv files without a header line."""
    quoted: Optional[bool] = null_hashed_as(True, field(default=None))
    """csv, tsv: true: a cell in double quotes may hold the delimiter and line breaks. False: quotes
    are text (CC3M, CC12M). Null: as true for csv, where a cell that swallows whole rows stops the
    job, and as false for tsv."""
    records_field: Optional[str] = null_hashed_as(
        "", not_empty(default=None, null="takes the file as the list")
    )
    """json: the field that holds the list of rows; null where the file is that list."""


def problems(config: PoolConfig) -> list[str]:
    if not config.enabled:
        return []
    found = out_of_bounds(config, "sources.pool")
    if not config.paths:
        found.append("sources.pool.paths is empty: add 'sources.pool.paths=[pool/*.parquet]'")
    for name in ("url_column", "caption_column"):
        value = getattr(config, name)
        if not all(value.split("|")):
            found.append(f"sources.pool.{name} = '{value}': name the column, it cannot be absent")
    secret = [key for key in config.storage_options if "secret" in key or "token" in key]
    if secret:
        found.append(
            f"sources.pool.storage_options.{secret[0]}: a secret would be written into config.yaml;"
            " give it by the environment (AWS_SECRET_ACCESS_KEY, ...)"
        )
    return found

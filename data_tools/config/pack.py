"""Settings of the pack stage: size, order and place of the shards."""

from dataclasses import dataclass
from typing import Optional

import fsspec
from fsspec.utils import get_protocol

from data_tools.ground.fields import at_least, not_empty, null_hashed_as, out_of_bounds


@dataclass(kw_only=True, slots=True)
class PackConfig:
    samples_per_shard: Optional[int] = at_least(
        1, default=10000, null="needs pack.target_shard_bytes"
    )
    """Samples per shard; null when target_shard_bytes is given."""
    target_shard_bytes: Optional[int] = at_least(
        100_000, default=None, null="needs pack.samples_per_shard"
    )
    """Size per shard in bytes, instead of samples_per_shard: a shard ends before the sample that
    would bring it above this size, by an estimate within 1 % for photographs. Null: not used."""
    seed: int = 0
    """Seed of the global shuffle: samples lie in the order of hash(seed, uid)."""
    processes: int = at_least(1, default=2)
    """Processes that write shards; the bytes do not depend on it."""
    target_url: Optional[str] = null_hashed_as("", not_empty(default=None, null="copies nothing"))
    """Folder or URL that the finished data set is copied to with fsspec, such as
    s3://bucket/prefix; the manifest is copied last. Null copies nothing."""


def problems(config: PackConfig) -> list[str]:
    found = out_of_bounds(config, "pack")
    if (config.samples_per_shard is None) == (config.target_shard_bytes is None):
        found.append(
            f"pack.samples_per_shard = {config.samples_per_shard} and pack.target_shard_bytes = "
            f"{config.target_shard_bytes}: give one of them, and null for the other"
        )
    if config.target_url:  # now, not after days of crawling
        try:
            fsspec.get_filesystem_class(get_protocol(config.target_url))
        except (ValueError, ImportError) as error:
            found.append(
                f"pack.target_url = {config.target_url}: {error}; give a folder or a URL that "
                "fsspec knows, and install what it names"
            )
    return found

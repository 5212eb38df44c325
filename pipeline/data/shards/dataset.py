"""Opens a data set for training: reads its manifest and checks that its files are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_tools.dataset.manifest import (
    Manifest,
    ManifestError,
    ShardEntry,
    parse_manifest,
    refuse_broken,
    remedy,
)
from pipeline.data.shards.storage import LocalStorage, RemoteStorage, open_storage

# A stat takes 0.3 ms on a parallel file system, where these overlap. On a local disk it takes 5 us,
# and threads would only wait for each other at the interpreter lock: 1.6 s for 40,000 shards, one
# after the other 0.7 s.
_STAT_THREADS = 8
_SLOW_STAT_S = 50e-6
_SHARDS_AT_ONCE = 64
# In an object store each rank checks at most this many shards at start; a request takes 50 ms.
_MAX_REMOTE_CHECKS = 64


@dataclass(frozen=True)
class DataSet:
    """`name` tells data sets of a mixture apart: the path or URL of the manifest's folder."""

    name: str
    manifest: Manifest
    storage: LocalStorage | RemoteStorage
    num_samples: int


def open_dataset(location: str, rank: int = 0, world_size: int = 1) -> DataSet:
    """Read a manifest from a path or URL, and check that every world_size-th shard from `rank` on
    is there with its size: together the ranks check all of them (of an object store, 64 per rank).

    Raises ManifestError with the first ten things wrong. Checksums are not computed here.
    """
    folder, _, name = location.rpartition("/")
    storage = open_storage(folder or ("/" if location.startswith("/") else "."))
    try:
        text = storage.read_file(name)
    except FileNotFoundError as error:
        raise ManifestError(
            f"no manifest at {location}: give the manifest.json that `make shards` wrote (or run "
            f"it first)"
        ) from error
    except Exception as error:  # stores' clients raise many kinds
        what = error if isinstance(error, OSError) else repr(error)
        raise ManifestError(
            f"{location} cannot be read: {what}. Correct the address, or the access to it"
        ) from error
    manifest, problems = parse_manifest(text, Path(folder or "."), location)
    share = manifest.shards[rank::world_size]
    if isinstance(storage, RemoteStorage):
        share = share[:_MAX_REMOTE_CHECKS]
    found = _missing_or_changed(share, storage)
    if isinstance(storage, RemoteStorage) and not found:
        found = _range_problems(share, storage)
    fix = remedy(manifest, location)
    if any(isinstance(problem, _Unanswered) for problem in found):
        fix = "correct the address, or the access to this storage"
    refuse_broken(location, problems + found, fix)
    return DataSet(folder or ".", manifest, storage, manifest.num_samples)


class _Unanswered(str):
    """A problem of the storage: nothing is known of the file."""


def _range_problems(shards: Sequence[ShardEntry], storage: RemoteStorage) -> list[str]:
    """Ask for a few bytes of one shard, as the loader will: a server that cannot give them would
    otherwise make every sample a bad one."""
    for shard in shards:
        if shard.num_bytes:
            start, stop = shard.num_bytes // 2, min(shard.num_bytes, shard.num_bytes // 2 + 512)
            try:
                storage.read_range(shard.path, start, stop)
            except OSError as error:
                return [_Unanswered(f"shard {shard.path} cannot be read in parts: {error}")]
            break
    return []


def _missing_or_changed(
    shards: Sequence[ShardEntry], storage: LocalStorage | RemoteStorage
) -> list[str]:
    def check(part: Sequence[ShardEntry]) -> list[str]:
        return [problem for shard in part for problem in _problems_of(shard, storage)]

    problems: list[str] = []
    # The first shards are checked one after the other, which shows how slow a stat is here.
    num_checked, took_s = 0, 0.0
    if isinstance(storage, LocalStorage):
        while num_checked < len(shards) and took_s < 2 * _SHARDS_AT_ONCE * _SLOW_STAT_S:
            began = time.monotonic()
            problems += check(shards[num_checked : num_checked + _SHARDS_AT_ONCE])
            num_checked += _SHARDS_AT_ONCE
            took_s = time.monotonic() - began
    rest = shards[num_checked:]
    step = max(1, min(256, -(-len(rest) // _STAT_THREADS)))
    parts = [rest[start : start + step] for start in range(0, len(rest), step)]
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="open-dataset") as pool:
        return problems + [problem for found in pool.map(check, parts) for problem in found]


def _problems_of(shard: ShardEntry, storage: LocalStorage | RemoteStorage) -> list[str]:
    problems: list[str] = []
    try:
        size = storage.size(shard.path)
        if size != shard.num_bytes:
            problems.append(f"shard {shard.path} has {size} bytes, {shard.num_bytes} were packed")
    except FileNotFoundError:
        problems.append(f"shard {shard.path} is missing")
    except OSError as error:
        problems.append(_Unanswered(f"shard {shard.path} cannot be looked at: {error}"))
    try:
        storage.size(shard.index_path)
    except FileNotFoundError:
        problems.append(f"index {shard.index_path} is missing")
    except OSError as error:
        problems.append(_Unanswered(f"index {shard.index_path} cannot be looked at: {error}"))
    return problems

"""Epochs that are drawn by keep_probability instead of a data set that was cut once.

    python -m pipeline.data.keep_probability data/mine/manifest.json

reads keep_probability of each sample, from a column of that name in the indices or else from the
samples' json, into keep_probability/FINGERPRINT.npy beside the manifest (float32, one a sample)
and FINGERPRINT.sums.npy (int64, running sums of blocks of 1,024 samples).

An epoch is a systematic sample (Madow, 1949): probabilities lie end to end on a circle of length
S = sum p, K = floor(S) points lie on it at distances of S/K >= 1, and the samples that they hit are
the epoch. So each epoch holds exactly K samples, none twice, each with probability p * K/S (K/S is
1 to within 1/S); point k is found by a search, so the order stays a closed form of the position,
with K in the place of N. The points' offset moves by the golden ratio from epoch to epoch: over E
epochs a sample comes p * E times, closer than independent draws would.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_tools.dataset.manifest import Manifest, ShardEntry
from pipeline.data.faults import LoaderError
from pipeline.data.order.sample_order import IntArray, Order, SampleOrder, keys_of
from pipeline.data.shards.index import column_numbers
from pipeline.data.shards.storage import ByteReader, LocalFile, LocalStorage, Storage

COLUMN = "keep_probability"
_BLOCK = 1024
# Fixed point: sums are exact, and below 2**63 for two billion samples.
_ONE = 2**32
_GOLDEN = 0x9E3779B97F4A7C15
_START, _OFFSET = 4, 5
_NUM_THREADS = 8
# The samples' json lie all over a shard: all of it is read.
_READ_AHEAD_BYTES = 8 * 1024**2


class KeepProbabilities:
    """Finds the samples that an epoch's points hit. The probabilities are memory-mapped: what ranks
    of a node read they share, and what is held is 8 bytes for 1,024 samples.
    """

    def __init__(self, manifest: Manifest, storage: Storage | None = None) -> None:
        """`storage` defaults to the manifest's folder; from an object store the probabilities are
        copied into a nameless temporary file, 4 bytes a sample. Raises LoaderError if the two files
        are missing or do not fit the manifest.
        """
        storage = storage or LocalStorage(str(manifest.root))
        name, sums_name = names_of(manifest)
        path = storage.path(name)
        try:
            self._file = storage.local_file(name)
            self._values = _mapped(self._file)
            self._sums = np.load(io.BytesIO(storage.read_file(sums_name)), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LoaderError(
                f"data.resample: {path} cannot be read ({error}); make it: python -m "
                f"pipeline.data.keep_probability with the manifest's path or URL"
            ) from error
        num_samples = manifest.num_samples
        blocks = -(-num_samples // _BLOCK)
        if self._values.shape != (num_samples,) or self._sums.shape != (blocks + 1,):
            raise LoaderError(
                f"data.resample: {path} holds {self._values.shape[0]} samples, the manifest "
                f"{num_samples}: delete it and make it anew"
            )
        self.total = int(self._sums[-1])
        self.num_kept = self.total // _ONE
        """Samples per epoch."""

    def __getstate__(self) -> dict[str, Any]:
        """For workers: they map the same file instead of being sent 4 bytes a sample."""
        file = self._file._replace(handle=None)
        return {key: value for key, value in vars(self).items() if key != "_values"} | {
            "_file": file
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._values = _mapped(self._file)

    def select(self, points: IntArray, starts: IntArray) -> IntArray:
        """Samples hit by points number `points` of epochs whose first point lies at `starts`."""
        step = self.total // max(1, self.num_kept)
        targets = (starts + points * step) % self.total
        blocks = np.searchsorted(self._sums, targets, side="right") - 1
        out = np.empty_like(points)
        order = np.argsort(blocks, kind="stable")
        borders = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        for first, stop in zip(borders, [*borders[1:], len(order)]):
            members = order[first:stop]
            block = int(blocks[members[0]])
            ends = np.cumsum(fixed_point(self._values[block * _BLOCK : (block + 1) * _BLOCK]))
            inside = np.searchsorted(ends, targets[members] - self._sums[block], side="right")
            out[members] = block * _BLOCK + inside
        return out


class ResampledOrder(Order):
    """A SampleOrder of the points of each epoch; neighbours among the points are near each other in
    the data set, so a lane still reads what lies together.
    """

    def __init__(
        self, keep: KeepProbabilities, *, chunk_size: int, global_batch_size: int, seed: int
    ) -> None:
        """Raises ValueError if an epoch does not fill a global batch."""
        self._keep = keep
        self._points = SampleOrder(
            keep.num_kept, chunk_size=chunk_size, global_batch_size=global_batch_size, seed=seed
        )
        self._seed = seed
        self.global_batch_size = global_batch_size
        self.chunk_size = self._points.chunk_size
        self.num_samples = keep.num_kept

    def samples(self, positions: IntArray) -> IntArray:
        epochs = positions // self.num_samples
        step = self._keep.total // self.num_samples
        turn = keys_of(self._seed, epochs, _START) % np.uint64(self.num_samples)
        first = keys_of(self._seed, np.zeros_like(epochs), _OFFSET)
        offset = first + epochs.astype(np.uint64) * np.uint64(_GOLDEN)
        # The upper 32 bits are enough of the offset, and their product stays within 64 bits.
        inside = (offset >> np.uint64(32)) * np.uint64(step >> 1) >> np.uint64(31)
        starts = (turn * np.uint64(step) + inside).astype(np.int64)
        return self._keep.select(self._points.samples(positions), starts)


def fixed_point(probabilities: np.ndarray) -> IntArray:
    """Shares of 2**32, in which sums are exact."""
    return np.rint(probabilities.astype(np.float64) * _ONE).astype(np.int64)


def names_of(manifest: Manifest) -> tuple[str, str]:
    """File names of the probabilities and of their running sums, relative to the manifest."""
    name = f"{COLUMN}/{manifest.fingerprint}"
    return f"{name}.npy", f"{name}.sums.npy"


def write_keep_probabilities(manifest: Manifest, storage: Storage | None = None) -> str:
    """Make both files; returns the first one's place. Raises LoaderError naming the first sample
    without a probability from 0 to 1.
    """
    storage = storage or LocalStorage(str(manifest.root))
    files = storage.reader(_READ_AHEAD_BYTES, _NUM_THREADS)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        parts = list(pool.map(partial(_read_shard, storage, files), manifest.shards))
    files.close()
    values = np.concatenate([np.zeros(0, np.float32), *parts])
    blocks = [
        int(fixed_point(values[start : start + _BLOCK]).sum())
        for start in range(0, len(values), _BLOCK)
    ]
    sums = np.cumsum([0, *blocks], dtype=np.int64)
    name, sums_name = names_of(manifest)
    for place, array in ((sums_name, sums), (name, values)):
        encoded = io.BytesIO()
        np.save(encoded, array, allow_pickle=False)
        storage.write_file(place, encoded.getvalue())
    return storage.path(name)


def _mapped(file: LocalFile) -> np.ndarray:
    values: np.ndarray = np.load(file.path, mmap_mode="r", allow_pickle=False)
    return values


def _read_shard(storage: Storage, files: ByteReader, shard: ShardEntry) -> np.ndarray:
    with pq.ParquetFile(storage.open_table(shard.index_path)) as index:
        if COLUMN in index.schema_arrow.names:
            values = column_numbers(index.read(columns=[COLUMN]), COLUMN).astype(np.float32)
        else:
            rows = index.read(columns=["key", "json_offset", "json_size"]).to_pylist()
            path = storage.path(shard.path)
            values = np.array([_of_json(path, row, files) for row in rows], np.float32)
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        raise LoaderError(
            f"{shard.path}: keep_probability of row {wrong[0]} is {values[wrong[0]]}, must be 0 to "
            f"1"
        )
    return values


def _of_json(path: str, row: dict[str, Any], files: ByteReader) -> float:
    try:
        data = files.read(path, row["json_offset"], row["json_size"])
        return float(json.loads(data)[COLUMN])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LoaderError(
            f"{path}: sample {row['key']} has no keep_probability in its json ({error!r}): "
            f"only data sets of `make shards` can be resampled"
        ) from error

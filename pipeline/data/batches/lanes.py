"""A rank's lanes: which sample each slot holds, and which one replaces it if it is bad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.batches.slots import Loaded, RankShare
from pipeline.data.faults import LoaderError, SampleError
from pipeline.data.order.sample_order import Order
from pipeline.data.samples.sample import SampleReader
from pipeline.data.shards.dataset import DataSet


@dataclass(frozen=True)
class LanePlan:
    """Everything that lanes are built from, with nothing open, so that it can be pickled and sent
    to another process."""

    order: Order
    datasets: list[DataSet]
    config: DataConfig
    share: RankShare
    seed: int

    def open(self, num_readers: int = 1) -> Lanes:
        """`num_readers` processes share the rank's lanes, and what its memory may hold."""
        return Lanes(self, num_readers)


class Lanes:
    """The SampleSource for data sets that are read by index."""

    def __init__(self, plan: LanePlan, num_readers: int) -> None:
        self._order = plan.order
        self._share = plan.share
        self._reader = SampleReader(
            plan.datasets,
            plan.config,
            image_size=plan.share.image_size,
            num_lanes=-(-plan.share.batch_size // num_readers),
            seed=plan.seed,
            num_readers=num_readers,
        )

    def check_first_shards(self, max_bad_fraction: float) -> None:
        """Raises LoaderError for a data set without images or captions in its first shard."""
        self._reader.check_first_shards(max_bad_fraction)

    def samples(self, samples_seen: int, slots: range) -> list[int]:
        first = self._share.first_lane
        numbers: list[int] = self._order.batch(
            samples_seen, first + slots.start, first + slots.stop
        ).tolist()
        return numbers

    def load(self, sample: int, position: int, out: np.ndarray) -> Loaded:
        """A sample that cannot be used is replaced by the next of its lane that can: one global
        batch further on in the order, so every number of ranks and workers takes the same one.
        """
        fault: SampleError | None = None
        # A lane reads chunk_size samples in a row from one place. Twice that many tries bring it to
        # another chunk, and so usually to another shard when a whole shard is broken.
        num_tries = 2 * self._order.chunk_size + 8
        for number in range(1, num_tries + 1):
            try:
                return Loaded(*self._reader.load(sample, position, out), fault)
            except SampleError as error:
                fault = fault or error.without_frames()
                later = position + number * self._share.global_batch_size
                sample = int(self._order.samples(np.array([later]))[0])
        raise LoaderError(
            f"{num_tries} samples of a lane in a row cannot be used, the first: {fault}"
        )

    def close(self) -> None:
        self._reader.close()

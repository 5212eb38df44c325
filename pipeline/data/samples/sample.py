"""One sample: from its number to pixels and caption; its randomness is keyed by its position."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from pipeline.config import CaptionChoice, DataConfig
from pipeline.data.faults import SampleError
from pipeline.data.samples.captions import choose_caption
from pipeline.data.samples.colour import ColourAugmentation
from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.transforms import (
    SampleRandom,
    decode_reduction,
    random_crop_box,
    resized_crop,
    write_planes,
)
from pipeline.data.shards.dataset import DataSet
from pipeline.data.shards.index import MAX_BLOCKS, SampleIndex, SampleLocation
from pipeline.data.shards.reader import ShardReader


class RawSample(NamedTuple):
    key: str
    shard: str
    offset: int
    """Byte offset of the image in the shard; -1 if it is not known."""
    image: bytes
    text: bytes
    json: bytes


class SampleDecoder:
    """Bytes -> pixels and caption, by the options of a job. Safe to call from threads."""

    def __init__(self, config: DataConfig, *, image_size: int, seed: int) -> None:
        self._config = config
        self._colour = ColourAugmentation(config.colour)
        self._image_size = image_size
        self._seed = seed

    def decode(self, raw: RawSample, position: int, out: np.ndarray) -> str:
        """Pixels into `out`, uint8 (3, image_size, image_size); returns the cleaned caption.

        `position`, the sample's place in the run, keys all that is random. Raises SampleError.
        """
        config = self._config
        random = SampleRandom(self._seed, position)
        try:
            image = decode_rgb(raw.image, self._reduction)
            height, width = image.shape[:2]
            box = random_crop_box(width, height, scale_min=config.crop_scale_min, random=random)
            pixels = self._colour(resized_crop(image, box, self._image_size), random)
            caption = choose_caption(
                raw.text, raw.json, config.caption_choice, config.caption_dropout, random
            )
        except ValueError as error:  # DecodeError and UnicodeDecodeError are ValueErrors
            raise SampleError(str(error), raw.key, raw.shard, raw.offset) from error
        write_planes(pixels, out)
        return caption

    def _reduction(self, width: int, height: int) -> int:
        return decode_reduction(
            width,
            height,
            image_size=self._image_size,
            scale_min=self._config.crop_scale_min,
        )


class SampleReader:
    """Reads and decodes samples of one or more data sets, numbered through all of them. Safe to
    call from threads.
    """

    def __init__(
        self,
        datasets: Sequence[DataSet],
        config: DataConfig,
        *,
        image_size: int,
        num_lanes: int,
        seed: int,
        num_readers: int = 1,
    ) -> None:
        """`num_lanes`: lanes of this reader, each of which reads at another place. `num_readers`:
        readers of this rank; they divide the rank's memory for indices among them.
        """
        self._datasets = tuple(datasets)
        self._ends = list(accumulate(dataset.num_samples for dataset in datasets))
        self._indices = [
            SampleIndex(dataset.manifest, dataset.storage, MAX_BLOCKS // num_readers)
            for dataset in datasets
        ]
        self._readers = [
            ShardReader(dataset.storage.reader(_chunk_bytes(dataset, config.chunk_size), num_lanes))
            for dataset in datasets
        ]
        self._decoder = SampleDecoder(config, image_size=image_size, seed=seed)
        self._with_json = config.caption_choice is not CaptionChoice.own

    def check_first_shards(self, max_bad_fraction: float) -> None:
        """Raises LoaderError for a data set without images or captions in its first shard."""
        for index in self._indices:
            index.check_first_shard(max_bad_fraction)

    def load(self, sample: int, position: int, out: np.ndarray) -> tuple[str, str]:
        """Pixels of sample number `sample` into `out`, uint8 (3, image_size, image_size).

        Returns (key, cleaned caption). `position`, the sample's place in the run, keys what is
        random. Raises SampleError if it cannot be read or decoded, or has no caption.
        """
        number = bisect_right(self._ends, sample)
        inside = sample - (self._ends[number - 1] if number else 0)
        try:
            location = self._indices[number].locate(inside)
            raw = self._read(self._readers[number], location)
            return raw.key, self._decoder.decode(raw, position, out)
        except SampleError as error:
            if len(self._datasets) == 1:
                raise
            place = f"{self._datasets[number].name}/{error.shard}"
            raise SampleError(error.reason, error.key, place, error.offset) from error

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _read(self, reader: ShardReader, location: SampleLocation) -> RawSample:
        if self._with_json:
            image, text, json = reader.read_with_json(location)
        else:
            (image, text), json = reader.read(location), b""
        return RawSample(location.key, location.shard, location.image_offset, image, text, json)


def _chunk_bytes(dataset: DataSet, chunk_size: int) -> int:
    return -(-dataset.manifest.num_bytes // max(1, dataset.num_samples)) * chunk_size

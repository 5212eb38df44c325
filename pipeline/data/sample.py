"""One sample: from its number to pixels and caption; its randomness is keyed by its position."""

from __future__ import annotations

import numpy as np

from data_tools.manifest import Manifest
from pipeline.data.decode import decode_rgb
from pipeline.data.faults import SampleError
from pipeline.data.index import SampleIndex
from pipeline.data.reader import ShardReader
from pipeline.data.tokenizer import clean_caption
from pipeline.data.transforms import (
    SampleRandom,
    crop_and_resize,
    decode_reduction,
    random_crop_box,
)


class SampleSource:
    """Reads, decodes and crops samples of a data set. Safe to call from threads."""

    def __init__(
        self, manifest: Manifest, *, image_size: int, crop_scale_min: float, seed: int
    ) -> None:
        self.index = SampleIndex(manifest)
        self._reader = ShardReader()
        self._image_size = image_size
        self._crop_scale_min = crop_scale_min
        self._seed = seed

    def load(self, sample: int, position: int, out: np.ndarray) -> tuple[str, str]:
        """Pixels of sample number `sample` into `out`, uint8 (3, image_size, image_size).

        Returns (key, cleaned caption). `position`, the sample's place in the run, keys the crop.
        Raises SampleError if the sample cannot be read or decoded, or has no caption.
        """
        location = self.index.locate(sample)
        image_bytes, text_bytes = self._reader.read(location)
        try:
            caption = clean_caption(text_bytes.decode())
            if not caption:
                raise ValueError("empty caption")
            image = decode_rgb(image_bytes, self._reduction)
        except ValueError as error:  # of decode: DecodeError and UnicodeDecodeError are such
            raise SampleError(
                str(error), location.key, location.shard, location.image_offset
            ) from error
        height, width = image.shape[:2]
        random = SampleRandom(self._seed, position)
        box = random_crop_box(width, height, scale_min=self._crop_scale_min, random=random)
        crop_and_resize(image, box, out)
        return location.key, caption

    def close(self) -> None:
        self._reader.close()

    def _reduction(self, width: int, height: int) -> int:
        return decode_reduction(
            width, height, image_size=self._image_size, scale_min=self._crop_scale_min
        )

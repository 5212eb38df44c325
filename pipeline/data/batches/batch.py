"""A batch, and a batch in the making that workers fill slot by slot."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.batches.slots import BatchArrays, Filled
from pipeline.data.faults import SampleError

_TOKENS_MULTIPLE = 8


@dataclass(slots=True)
class Batch:
    """One rank's share of a global batch; element i of every field belongs to sample i. It is valid
    as long as anything refers to it: its memory is used again only after that.
    """

    images: torch.Tensor
    """uint8 (B, 3, image_size, image_size), RGB; like all tensors here page-locked if CUDA is
    there."""
    tokens: torch.Tensor
    """int64 (B, L), zeros after the end token; L is the longest caption's, rounded up to 8."""
    caption_ids: torch.Tensor
    """int64 (B,), xxh64 of the cleaned, lower-cased caption: equal for equal captions."""
    keys: list[str]
    num_bad: int
    """Samples that could not be used and are replaced by later ones of their lanes."""


class BatchWork:
    """Slots to fill. Workers write different slots of `arrays`, and `done` or `fail` is called for
    them, from any thread; the consumer waits, then takes.
    """

    def __init__(self, first_position: int, images: torch.Tensor, arrays: BatchArrays) -> None:
        """`arrays.pixels` is the memory of `images`."""
        self.first_position = first_position
        self.arrays = arrays
        self.faults: dict[int, SampleError] = {}
        self.error: BaseException | None = None
        self.cancelled = False
        """Nobody will take it: workers may leave out what they have not begun."""
        self.num_pending = len(images)
        self._images = images
        self._keys = [""] * len(images)
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def done(self, filled: Filled) -> None:
        """Some slots are filled."""
        slots = filled.slots
        self._keys[slots.start : slots.stop] = filled.keys
        self.faults.update(filled.faults)
        with self._lock:
            self.num_pending -= len(slots)
            if not self.num_pending:
                self._finished.set()

    def fail(self, error: BaseException) -> None:
        """The batch cannot be finished; `take` will raise the first error it was failed with."""
        self.error = self.error or error
        self._finished.set()

    def wait(self, timeout_s: float) -> bool:
        """True as soon as every slot is filled or the work has failed."""
        return self._finished.wait(timeout_s)

    def take(self) -> Batch:
        if self.error is not None:
            raise self.error
        arrays = self.arrays
        # The end token is the largest id. Counting non-zeros would not do: "!" can be token 0.
        longest = int(arrays.tokens.argmax(axis=1).max()) + 1
        length = min(-(-longest // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE, arrays.tokens.shape[1])
        # Copies, 1 % of the batch: the tensors live on when the arrays are filled anew.
        tokens = torch.from_numpy(arrays.tokens[:, :length].astype(np.int64))
        caption_ids = torch.from_numpy(arrays.caption_ids.astype(np.int64))
        if torch.cuda.is_available():
            tokens, caption_ids = tokens.pin_memory(), caption_ids.pin_memory()
        return Batch(self._images, tokens, caption_ids, self._keys, len(self.faults))

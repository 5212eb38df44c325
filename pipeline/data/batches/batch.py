"""A finished batch, and the work on one that workers fill slot by slot."""

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
    """One rank's share of a global batch; element i of every field belongs to sample i. It stays
    valid as long as anything refers to it: only then is its memory used again.
    """

    images: torch.Tensor
    """uint8 (B, 3, image_size, image_size), RGB. This and the other tensors are page-locked if CUDA
    is available."""
    tokens: torch.Tensor
    """int64 (B, L), zeros after the end token; L is the longest caption's, rounded up to 8."""
    caption_ids: torch.Tensor
    """int64 (B,), xxh64 of the cleaned, lower-cased caption: equal for equal captions."""
    keys: list[str]
    num_bad: int
    """Number of samples that could not be used; later samples of their lanes replace them."""


class BatchWork:
    """A batch that is being filled. Workers write different slots of `arrays`; `mark_filled` or
    `fail` is called for them, from any thread. The consumer calls `wait`, then `take`.
    """

    def __init__(self, first_position: int, images: torch.Tensor, arrays: BatchArrays) -> None:
        """`arrays.pixels` is the memory of `images`."""
        self.first_position = first_position
        self.arrays = arrays
        self.faults: dict[int, SampleError] = {}
        self.error: BaseException | None = None
        self.cancelled = False
        """True when nobody will take the batch: workers may skip slots they have not begun."""
        self.num_pending = len(images)
        self._images = images
        self._keys = [""] * len(images)
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def mark_filled(self, filled: Filled) -> None:
        """Mark `filled.slots` as complete."""
        slots = filled.slots
        self._keys[slots.start : slots.stop] = filled.keys
        self.faults.update(filled.faults)
        with self._lock:
            self.num_pending -= len(slots)
            if not self.num_pending:
                self._finished.set()

    def fail(self, error: BaseException) -> None:
        """Give the batch up; `take` will raise the first error that was passed here."""
        self.error = self.error or error
        self._finished.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until every slot is filled or the work has failed; False after `timeout_s`
        seconds."""
        return self._finished.wait(timeout_s)

    def take(self) -> Batch:
        """The finished batch; call after `wait`. Raises the error that the work failed with."""
        if self.error is not None:
            raise self.error
        arrays = self.arrays
        # The end token is the largest id. Counting non-zeros would not do: "!" can be token 0.
        longest = int(arrays.tokens.argmax(axis=1).max()) + 1
        length = min(-(-longest // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE, arrays.tokens.shape[1])
        # Copied (1 % of the batch's bytes): the buffer may be filled again while the consumer still
        # has these tensors.
        tokens = torch.from_numpy(arrays.tokens[:, :length].astype(np.int64))
        caption_ids = torch.from_numpy(arrays.caption_ids.astype(np.int64))
        if torch.cuda.is_available():
            tokens, caption_ids = tokens.pin_memory(), caption_ids.pin_memory()
        return Batch(self._images, tokens, caption_ids, self._keys, len(self.faults))

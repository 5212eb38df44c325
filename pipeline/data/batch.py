"""A batch, and a batch in the making that threads fill slot by slot."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.faults import SampleError

_TOKENS_MULTIPLE = 8


@dataclass(slots=True)
class Batch:
    """One rank's share of a global batch; element i of every field belongs to sample i."""

    images: torch.Tensor
    """uint8 (B, 3, image_size, image_size), RGB; like all tensors here pinned if CUDA is there."""
    tokens: torch.Tensor
    """int64 (B, L), zeros after the end token; L is the longest caption's, rounded up to 8."""
    caption_ids: torch.Tensor
    """int64 (B,), xxh64 of the cleaned, lower-cased caption: equal for equal captions."""
    keys: list[str]
    num_bad: int
    """Samples that could not be used and are replaced by later ones of their lanes."""


class BatchWork:
    """Slots to fill. Threads write different slots and call `done`; the consumer waits, then takes.

    Made in the consumer's thread: pinned memory belongs to the CUDA device that is current there.
    """

    def __init__(
        self,
        first_position: int,
        samples: list[int],
        *,
        image_size: int,
        context_length: int,
        pin: bool,
    ) -> None:
        size = len(samples)
        self.first_position = first_position
        self.samples = samples
        self.cancelled = False
        self.faults: dict[int, SampleError] = {}
        self.error: BaseException | None = None
        self.keys = [""] * size
        self._images = torch.empty(
            (size, 3, image_size, image_size), dtype=torch.uint8, pin_memory=pin
        )
        self.pixels = self._images.numpy()
        self.tokens = np.zeros((size, context_length), dtype=np.uint16)
        self.caption_ids = np.zeros(size, dtype=np.uint64)
        self.num_pending = size
        self._pin = pin
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def done(self, count: int) -> None:
        """`count` slots are filled."""
        with self._lock:
            self.num_pending -= count
            if not self.num_pending:
                self._finished.set()

    def fail(self, error: BaseException) -> None:
        """The batch cannot be finished; `take` will raise this."""
        self.error = error
        self._finished.set()

    def wait(self, timeout_s: float) -> bool:
        """True as soon as every slot is filled or the work has failed."""
        return self._finished.wait(timeout_s)

    def take(self) -> Batch:
        if self.error is not None:
            raise self.error
        # The end token is the largest id. Counting non-zeros would not do: "!" can be token 0.
        longest = int(self.tokens.argmax(axis=1).max()) + 1
        length = min(-(-longest // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE, self.tokens.shape[1])
        tokens = torch.from_numpy(self.tokens[:, :length].astype(np.int64))
        caption_ids = torch.from_numpy(self.caption_ids.view(np.int64))
        if self._pin:
            tokens, caption_ids = tokens.pin_memory(), caption_ids.pin_memory()
        return Batch(self._images, tokens, caption_ids, self.keys, len(self.faults))

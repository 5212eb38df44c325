"""A copy of a rank's fragments in host memory, so that training goes on while it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.device_timer import DeviceTimer
from pipeline.engine.checkpoint.record import tensor_key
from pipeline.engine.checkpoint.tensors import BLOCK_BYTES, header
from pipeline.engine.shards import Fragment

# torch rounds pinned memory up to a power of two: a single buffer could waste half of its size
_CHUNK_ELEMENTS = 2**26


class Snapshot:
    """The copy: float32 and, beside a CUDA device, pinned. It is allocated at the first `take` and
    kept: 12 bytes for each parameter that the rank owns, 16 with an average of the weights."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[Tensor] = []
        self._sizes: list[tuple[str, int]] = []
        self._timer = DeviceTimer(device)

    def take(self, fragments: Sequence[Fragment]) -> None:
        """Queue the copies on the current stream and return: the next step changes its weights only
        after them. Do not call it again before `wait` and `blocks` are done."""
        values = [
            (tensor_key(kind, fragment.name, fragment.start), value)
            for fragment in fragments
            for kind, value in fragment.values.items()
        ]
        self._sizes = [(key, value.numel()) for key, value in values]
        self._make_room(sum(size for _, size in self._sizes))
        self._timer.start()
        place = 0
        for _, value in values:
            self._copy(value.detach(), place)
            place += value.numel()
        self._timer.stop()

    def wait(self) -> float:
        """Wait for the copies; return the seconds that the device took for them."""
        return self._timer.seconds()

    def blocks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a safetensors file: header, then values."""
        yield header(self._sizes)
        for chunk in self._chunks:
            content = chunk.numpy().view("uint8").data
            for start in range(0, len(content), BLOCK_BYTES):
                yield content[start : start + BLOCK_BYTES]

    def _make_room(self, num_elements: int) -> None:
        if sum(chunk.numel() for chunk in self._chunks) == num_elements:
            return
        self._chunks = []
        pinned = self._device.type == "cuda"
        for start in range(0, num_elements, _CHUNK_ELEMENTS):
            size = min(_CHUNK_ELEMENTS, num_elements - start)
            self._chunks.append(torch.empty(size, dtype=torch.float32, pin_memory=pinned))

    def _copy(self, value: Tensor, place: int) -> None:
        copied = 0
        while copied < value.numel():
            chunk, start = divmod(place + copied, _CHUNK_ELEMENTS)
            size = min(_CHUNK_ELEMENTS - start, value.numel() - copied)
            target = self._chunks[chunk].narrow(0, start, size)
            target.copy_(value.narrow(0, copied, size), non_blocking=True)
            copied += size

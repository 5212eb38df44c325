"""How long a device works, measured without making the host wait for it."""

from __future__ import annotations

import time

import torch


class DeviceTimer:
    """Measures the seconds that a device takes for the work queued between `start` and `stop`.

    Neither call waits for the device; `seconds` does. On a CPU it is the time between the calls.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[torch.cuda.Event | float] = []

    def start(self) -> None:
        self._marks = [self._mark()]

    def stop(self) -> None:
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """The measured time, once `start` and `stop` were both called."""
        start, stop = self._marks
        if isinstance(start, float) or isinstance(stop, float):
            return float(stop) - float(start)  # type: ignore[arg-type]
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def _mark(self) -> torch.cuda.Event | float:
        if not self._on_cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

"""TensorBoard output in run_dir/tensorboard, if logging.tensorboard is set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError


class TensorBoardSink:
    """Writes the metrics under the same names as in metrics.jsonl. Raises ConfigError where
    tensorboard is not installed."""

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "logging.tensorboard = true: tensorboard is not installed; `pip install "
                "'clip-pretrain[tensorboard]'`, or leave it out"
            ) from error
        self._new_writer: Any = SummaryWriter
        self._folder = run_dir / "tensorboard"
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Open a new file. TensorBoard then hides what earlier files hold for steps after
        `step`."""
        self.close()
        self._writer = self._new_writer(str(self._folder), purge_step=step + 1, flush_secs=30)

    def write(self, step: int, line: dict[str, float]) -> None:
        assert self._writer is not None, "start() comes first"
        for name, value in line.items():
            if math.isfinite(value):  # a NaN breaks the chart's range
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

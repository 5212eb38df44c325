"""All that rank 0 writes: metrics.jsonl always, W&B, TensorBoard, the console."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.config import TrainJob, WandbMode
from pipeline.distributed.world import World
from pipeline.metrics.console import Console
from pipeline.metrics.environment import environment
from pipeline.metrics.examples import retrieval_strips
from pipeline.metrics.record import JsonLines
from pipeline.metrics.tensorboard_sink import TensorBoardSink
from pipeline.metrics.wandb_sink import WandbSink
from pipeline.state import TrainState


class Outputs:
    """Opened before any device time; what cannot be opened raises."""

    def __init__(self, config: TrainJob, world: World) -> None:
        run_dir = Path(config.run_dir)
        # first what may be missing, then what leaves files
        self._tensorboard = TensorBoardSink(run_dir) if config.logging.tensorboard else None
        self._lines = JsonLines(run_dir / "metrics.jsonl")
        told = environment(world)
        aside = run_dir / ".env.json.tmp"
        aside.write_text(json.dumps(told, indent=1) + "\n")
        os.replace(aside, run_dir / "env.json")
        self._wandb = None
        if config.logging.wandb_mode is not WandbMode.disabled:
            self._wandb = WandbSink(config, run_dir, told)
        self.console = Console(config.train.steps)

    def start(self, state: TrainState) -> dict[str, float]:
        """Drop the lines of steps that come again; return the last one that stays (of training),
        or {}."""
        kept = self._lines.keep(lambda line: line["step"] <= state.step)
        if self._tensorboard is not None:
            self._tensorboard.start(state.step)
        self.console.start(state.step)
        return next((line for line in reversed(kept) if "train/loss" in line), {})

    def write(self, step: int, line: dict[str, float]) -> None:
        self._lines.append({"step": step} | line)
        if self._wandb is not None:
            self._wandb.write(step, line)
        if self._tensorboard is not None:
            self._tensorboard.write(step, line)

    def write_examples(self, step: int, results: dict[str, dict[str, Any]]) -> None:
        """Pictures for W&B; the report has them for everybody else."""
        if self._wandb is None:
            return
        strips = {
            f"eval/{name}/text_to_image_examples": retrieval_strips(result)
            for name, result in results.items()
        }
        strips = {name: shown for name, shown in strips.items() if shown}
        if strips:
            self._wandb.write_images(step, strips)

    def close(self) -> None:
        self.console.close()
        self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close()

"""Everything that rank 0 writes: metrics.jsonl always; W&B, TensorBoard and the console where
asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.ground.aside import write_text_aside
from pipeline.config import TrainJob, WandbMode
from pipeline.config.run_files import METRICS
from pipeline.distributed.world import World
from pipeline.metrics.console import Console
from pipeline.metrics.environment import environment
from pipeline.metrics.examples import retrieval_strips
from pipeline.metrics.record import JsonLines
from pipeline.metrics.tensorboard_sink import TensorBoardSink
from pipeline.metrics.wandb_sink import WandbSink
from pipeline.state import TrainState


class Outputs:
    """The outputs of a run. They are opened before any device time is spent; one that cannot be
    opened raises."""

    def __init__(self, config: TrainJob, world: World) -> None:
        run_dir = Path(config.run_dir)
        # First what may be missing (a package), then what leaves files behind.
        self._tensorboard = TensorBoardSink(run_dir) if config.logging.tensorboard else None
        self._lines = JsonLines(run_dir / METRICS)
        self._lines.keep(lambda _: True)  # a damaged line is told before there is a model
        facts = environment(world)
        write_text_aside(run_dir / "env.json", json.dumps(facts, indent=1) + "\n")
        self._wandb = None
        if config.logging.wandb_mode is not WandbMode.disabled:
            self._wandb = WandbSink(config, run_dir, facts)
        self.console = Console(config.train.steps)

    def start(self, state: TrainState) -> dict[str, float]:
        """Drop the lines of steps that will be taken again; those of a run that was killed before
        its first checkpoint stay in another file. Returns the last training line that stays, or
        {}."""
        if state.step == 0 and (aside := self._lines.set_aside()) is not None:
            self.console.tell(f"begins from step 0: {aside} has the metrics of the start before")
        kept = self._lines.keep(lambda line: line["step"] <= state.step)
        if self._tensorboard is not None:
            self._tensorboard.start(state.step)
        self.console.start(state.step)
        if state.step and not kept:
            self.console.tell(
                f"{self._lines.path}: the lines up to step {state.step} are missing; it goes on "
                "without them"
            )
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

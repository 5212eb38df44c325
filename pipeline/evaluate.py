"""Checkpoint to tables: zero-shot classification and retrieval on every rank, eval/*.json,
report.html.

python -m pipeline.evaluate run_dir=runs/demo
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import launch

if __name__ == "__main__":  # a launcher ends here, without the 3 s of the imports below
    launch.launch_unless_rank("pipeline.evaluate", sys.argv[1:])

import torch
from torch import Tensor

from pipeline.config import TrainJob
from pipeline.data import EvalSet, Tokenizer, load_eval_set
from pipeline.distributed.world import World, init_distributed
from pipeline.engine.checkpoint import load_model_weights, newest_step
from pipeline.eval import evaluate_model, format_table, write_report, write_results
from pipeline.model import clip_of_weights

Encoder = Callable[[Tensor], Tensor]


class Evaluation:
    """The evaluation sets of a job, opened once; `run` scores a model on all of them."""

    def __init__(self, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        self._tokenizer = Tokenizer(config.model.text.context_length)
        self._sets: list[EvalSet] = [
            load_eval_set(folder, config.model.image_size, world.rank, world.world_size)
            for folder in config.eval.datasets
        ]

    def run(
        self, encode_image: Encoder, encode_text: Encoder, step: int
    ) -> dict[str, dict[str, Any]]:
        """Score both towers and return the results by set name, the same on every rank. Collective.

        Rank 0 also writes eval/step_N.json and report.html and prints the table.
        """
        if not self._sets:
            return {}
        with self._world.raise_on_all_ranks("evaluate"):
            results = evaluate_model(
                encode_image,
                encode_text,
                self._tokenizer,
                self._sets,
                device=self._world.device,
                batch_size=self._config.eval.batch_size,
                group=torch.distributed.group.WORLD,
            )
        if self._world.is_main:
            run_dir = Path(self._config.run_dir)
            write_results(run_dir, step, results)
            report = write_report(run_dir)
            print(format_table(results), flush=True)
            print(f"report: {report}", flush=True)
        return results


def evaluate(config: TrainJob) -> None:
    """Run on every rank: score the newest checkpoint of the run."""
    world = init_distributed(config.cluster.timeout_minutes, config.train.threads_per_rank)
    run_dir = Path(config.run_dir)
    with world.raise_on_all_ranks("open the evaluation sets and the checkpoint"):
        evaluation = Evaluation(config, world)
        step = newest_step(run_dir)
        weights = load_model_weights(run_dir, step)
        model = clip_of_weights(weights, config.model, config.loss.max_logit_scale)
    model = model.to(world.device).eval()
    with torch.inference_mode():
        evaluation.run(model.encode_image, model.encode_text, step)


if __name__ == "__main__":
    sys.exit(launch.main("pipeline.evaluate", evaluate, sys.argv[1:]))

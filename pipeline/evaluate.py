"""Checkpoint to tables: zero-shot classification and retrieval on every rank, eval/*.json,
report.html.

python -m pipeline.evaluate run_dir=runs/demo
python -m pipeline.evaluate run_dir=runs/demo step=200 ema=false eval.datasets=[data/eval/photos]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import launch_evaluation

if __name__ == "__main__" and not launch_evaluation.is_rank(sys.argv[1:]):
    # a launcher ends here, without the 3 s of the imports below
    sys.exit(launch_evaluation.launch_evaluation(sys.argv[1:]))

import torch
from torch import Tensor

from pipeline.commands import EvaluateSettings
from pipeline.config import TrainJob
from pipeline.data import EvalSet, EvalSetError, Tokenizer, load_eval_set
from pipeline.distributed.group import Group
from pipeline.distributed.world import World, init_distributed
from pipeline.engine.checkpoint import CheckpointError, Weights, read_weights
from pipeline.eval import (
    EvalError,
    evaluate_model,
    format_table,
    scored_sets,
    set_aside_after,
    write_report,
    write_results,
)
from pipeline.model import CLIP, clip_of_weights

Encoder = Callable[[Tensor], Tensor]


class Evaluation:
    """The evaluation sets of a job, opened once; `run` scores a model on all of them."""

    def __init__(self, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        self._run_dir = Path(config.run_dir)
        self._tokenizer = Tokenizer(config.model.text.context_length)
        self._sets = _open_sets(config, world)

    def due(self, step: int) -> bool:
        """Whether a training evaluates after this step: at the last, and as eval.every_steps
        says."""
        every = self._config.eval.every_steps
        last = step == self._config.train.steps
        return step > 0 and bool(self._sets) and (last or bool(every and step % every == 0))

    def owed(self, step: int) -> bool:
        """Whether an evaluation is due at this step and not all of its scores are there: the
        training was stopped between the checkpoint and its evaluation. Collective."""
        if not self.due(step):
            return False
        names = {eval_set.name for eval_set in self._sets}
        owed = Group.of(None).broadcast(lambda: not names <= scored_sets(self._run_dir, step))
        if owed:
            self._world.tell(f"step {step} is not evaluated: a stop came before")
        return owed

    def go_back_to(self, step: int) -> None:
        """Set aside the scores of later steps, which the run takes again. Collective."""
        outdated: list[int] = []
        with self._world.raise_on_all_ranks("set aside the scores of later steps"):
            if self._world.is_main:
                with _written(self._run_dir):
                    outdated = set_aside_after(self._run_dir, step)
        if outdated:
            steps = ", ".join(map(str, outdated))
            self._world.tell(f"scores of steps {steps} are {self._run_dir}/eval/*.outdated now")

    def run(
        self, encode_image: Encoder, encode_text: Encoder, step: int, suffix: str = ""
    ) -> dict[str, dict[str, Any]]:
        """Score both towers and return the results by set name, the same on every rank. Collective.

        Rank 0 also adds them to eval/step_N.json, each under its name and `suffix`, writes
        report.html and prints the table.
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
        with self._world.raise_on_all_ranks("write the scores"):
            if self._world.is_main:
                self._write(step, {f"{name}{suffix}": scores for name, scores in results.items()})
        return results

    def _write(self, step: int, results: dict[str, dict[str, Any]]) -> None:
        print(format_table(results), flush=True)  # first: a full disk does not take it away
        with _written(self._run_dir):
            write_results(self._run_dir, step, results)
            report = write_report(self._run_dir)
        print(f"report: {report}", flush=True)


def evaluate(config: TrainJob, options: EvaluateSettings) -> None:
    """Run on every rank: score one checkpoint of the run."""
    world = init_distributed(config.cluster.timeout_minutes, config.train.threads_per_rank)
    # the file that all ranks read may have been replaced in between
    config = Group.of(None).broadcast(lambda: config)
    with world.raise_on_all_ranks("open the evaluation sets"):
        evaluation = Evaluation(config, world)
    model, weights = load_model(config, options, world)
    which = "the average of the weights" if weights.is_average else "the weights"
    world.tell(f"scoring {which} of step {weights.step}")
    # beside the run's own scores, which are those of the average
    suffix = " (ema=false)" if weights.has_average and not weights.is_average else ""
    with torch.inference_mode():
        evaluation.run(model.encode_image, model.encode_text, weights.step, suffix)


def load_model(config: TrainJob, options: EvaluateSettings, world: World) -> tuple[CLIP, Weights]:
    """The model of a checkpoint on this rank's device. Collective: rank 0 chooses the checkpoint
    and reads it, the others get its weights, so that all score the same while a training goes on.
    The weights returned have their values on rank 0 only.

    Raises CheckpointError, and PeerError on the other ranks.
    """
    ranks = Group.of(None)
    held: list[tuple[CLIP, Weights]] = []

    def choose() -> Weights:
        weights = read_weights(Path(config.run_dir), options.step, options.ema)
        try:
            model = clip_of_weights(weights.values, config.model, config.loss.max_logit_scale)
        except ValueError as error:
            raise CheckpointError(
                f"step {weights.step} of {config.run_dir} is of another model than its config.yaml "
                f"says ({error}): restore the one that belongs to the other"
            ) from error
        held.append((model, weights))
        return weights.without_values()

    weights = ranks.broadcast(choose)
    if held:
        model, weights = held[0]
    else:
        empty = {name: torch.empty(shape) for name, shape in weights.shapes.items()}
        model = clip_of_weights(empty, config.model, config.loss.max_logit_scale)
    model = model.to(world.device)
    for parameter in model.parameters():
        ranks.copy_to_all(parameter.data)
    return model.eval(), weights


def _open_sets(config: TrainJob, world: World) -> list[EvalSet]:
    """EvalSetError with the problem of every set that has one."""
    sets, problems = [], []
    for folder in config.eval.datasets:
        try:
            sets.append(
                load_eval_set(folder, config.model.image_size, world.rank, world.world_size)
            )
        except EvalSetError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{folder} cannot be read ({error}): make it readable, or leave it out")
    if problems:
        raise EvalSetError("\n  ".join(problems))
    return sets


@contextmanager
def _written(run_dir: Path) -> Iterator[None]:
    """An OSError inside as an EvalError that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        raise EvalError(
            f"{run_dir}: the scores cannot be written ({error}); make room or make it writable, "
            f"then evaluate again"
        ) from error


if __name__ == "__main__":
    sys.exit(launch_evaluation.main(evaluate, sys.argv[1:]))

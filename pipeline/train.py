"""START HERE. Shards to model: the whole flow of a training run on one page.

python -m pipeline.train experiment=demo train.steps=200   # compose, start the ranks
python -m pipeline.train run_dir=runs/demo                 # resume that run
python -m pipeline.train --config runs/demo/config.yaml    # be one rank; the two above and srun
                                                           # start this
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_tools.ground import exit_codes
from pipeline import launch

if __name__ == "__main__":  # a launcher ends here, without the 3 s of the imports below
    launch.launch_unless_rank("pipeline.train", sys.argv[1:])

import torch

from pipeline.config import Stem, TrainJob
from pipeline.data import Batch, Loader, build_train_loader
from pipeline.distributed.world import World, init_distributed, seed_everything
from pipeline.engine.checkpoint import CheckpointManager
from pipeline.engine.engine import ClipEngine
from pipeline.engine.health import Health, state_after_rollback
from pipeline.engine.preemption import StopRequest
from pipeline.engine.watchdog import Watchdog
from pipeline.evaluate import Evaluation
from pipeline.metrics import MetricsProcessor
from pipeline.model import flops_per_sample, initial_clip
from pipeline.run_folder import RunFolder
from pipeline.state import TrainState


def train(config: TrainJob) -> int:
    """Run on every rank: `train.steps` steps, a checkpoint and an evaluation at the end. Returns
    the exit code: 0, or STOPPED after a checkpoint if the run was asked to stop."""
    world = init_distributed(config.cluster.timeout_minutes, config.train.threads_per_rank)
    folder = RunFolder(config, world)
    with world.raise_on_all_ranks("open the data"):
        loader = open_loader(config, world)
        evaluation = Evaluation(config, world)
    checkpoints = CheckpointManager(config, world, loader.fingerprint)
    metrics = MetricsProcessor(config, world, loader.num_samples)
    health = Health(config.health)
    engine = build_engine(config, world)
    watchdog = Watchdog(config.run_dir, world.rank, 60 * config.health.stall_minutes)

    with loader, checkpoints, watchdog, StopRequest(world) as stop:
        state = checkpoints.load_latest(engine)
        folder.accept(state)
        metrics.start(state)
        evaluation.go_back_to(state.step)
        if evaluation.owed(state.step):  # a stop or a kill came between checkpoint and evaluation
            evaluate_towers(evaluation, engine, watchdog, metrics, state)
        batches = loader.batches(state.samples_seen, world.device)
        asked_to_stop = False
        while state.step < config.train.steps and not asked_to_stop:
            batch, waited_s = timed_next(batches)
            step_metrics = engine.train_step(batch, state.step)
            state.advance(config.train.global_batch_size)
            watchdog.beat(step=state.step)
            metrics.record_step(
                batch.keys,
                step_metrics,
                waited_s=waited_s,
                num_replaced=batch.num_bad,
                flops_per_sample=flops_per_sample(config.model, batch.tokens.shape[1]),
                state=state,
            )
            asked_to_stop = stop.agreed()
            done = state.step == config.train.steps
            if done or asked_to_stop or state.step % config.logging.every_steps == 0:
                sick = health.judge(metrics.log(state), state)
                if sick:
                    state = roll_back(checkpoints, engine, health, evaluation, state)
                    metrics.start(state)
                    batches = loader.batches(state.samples_seen, world.device)
                    world.tell(f"{sick}: back to step {state.step}, with later samples")
                    continue
            if done or asked_to_stop or checkpoints.due(state):
                with metrics.clock_stopped():
                    checkpoints.save(engine, state)
            if evaluation.due(state.step) and not asked_to_stop:  # the next start makes it up
                evaluate_towers(evaluation, engine, watchdog, metrics, state)
        checkpoints.close(upload=not asked_to_stop)  # a grace time is too short for an upload
        metrics.close()
        engine.close()

    world.barrier()  # ranks end together: Slurm ends those that are left 30 s after the first
    if state.step < config.train.steps or (asked_to_stop and evaluation.owed(state.step)):
        return exit_codes.STOPPED
    world.tell(next_steps(config))
    return 0


def timed_next(batches: Iterator[Batch]) -> tuple[Batch, float]:
    """The next batch, and how many seconds the step waited for it."""
    asked = time.monotonic()
    return next(batches), time.monotonic() - asked


def roll_back(
    checkpoints: CheckpointManager,
    engine: ClipEngine,
    health: Health,
    evaluation: Evaluation,
    state: TrainState,
) -> TrainState:
    """Load the last checkpoint and pass over the data since then; saved at once, so that a resumed
    run does not go back to it again."""
    state = state_after_rollback(checkpoints.load_latest(engine), state)
    health.rolled_back()
    checkpoints.save(engine, state)
    evaluation.go_back_to(state.step)
    return state


def evaluate_towers(
    evaluation: Evaluation,
    engine: ClipEngine,
    watchdog: Watchdog,
    metrics: MetricsProcessor,
    state: TrainState,
) -> None:
    """Score the towers as they are now, or their averages if the run keeps them, and log that."""
    with metrics.clock_stopped(), engine.evaluating():
        results = evaluation.run(
            watchdog.beating(engine.encode_image), watchdog.beating(engine.encode_text), state.step
        )
    metrics.log_eval(state, results)


def open_loader(config: TrainJob, world: World) -> Loader:
    """The loader of this rank's share of every global batch."""
    return build_train_loader(
        config.data,
        image_size=config.model.image_size,
        context_length=config.model.text.context_length,
        global_batch_size=config.train.global_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        seed=config.train.seed,
    )


def build_engine(config: TrainJob, world: World) -> ClipEngine:
    """The engine, with the same weights on every rank; from here on each rank draws random numbers
    of its own."""
    torch.manual_seed(config.train.seed)
    model = initial_clip(config)
    seed_everything(config.train.seed, world.rank)
    return ClipEngine(model, config, world)


def next_steps(config: TrainJob) -> str:
    """Two lines for the end of a run: the file to open and the command to try next."""
    run_dir = Path(config.run_dir)
    report = run_dir / "report.html"
    to_open = report if report.exists() else run_dir / "metrics.jsonl"
    # only the plain patch embedding exists in other libraries
    plain = config.model.vision.stem is Stem.patch
    form = "format=huggingface" if plain else "format=native"
    words = [f"run_dir={run_dir}", f"out={run_dir / 'exported'}", form]
    return f"open: {to_open}\ntry next: python -m pipeline.export {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(launch.main("pipeline.train", train, sys.argv[1:]))

"""START HERE. Shards to model: the whole flow of a training run on one page.

python -m pipeline.train experiment=demo train.steps=200   # compose, freeze, start the ranks
python -m pipeline.train run_dir=runs/demo                 # go on with that run
python -m pipeline.train --config runs/demo/config.yaml    # be one rank; the two above and srun
                                                           # start this
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from pipeline import launch
from pipeline.config import TrainJob
from pipeline.data import build_train_loader
from pipeline.distributed import init_distributed, seed_everything
from pipeline.engine.checkpoint import CheckpointManager
from pipeline.engine.engine import ClipEngine
from pipeline.evaluate import Evaluation
from pipeline.metrics import MetricsProcessor
from pipeline.model import CLIP, build_clip, flops_per_sample


def initial_model(config: TrainJob) -> CLIP:
    """The same weights on every rank."""
    torch.manual_seed(config.train.seed)
    return build_clip(
        config.model,
        init_logit_scale=config.loss.init_logit_scale,
        max_logit_scale=config.loss.max_logit_scale,
    )


def train(config: TrainJob) -> None:
    """Run on every rank. Ends after `train.steps` steps, with a checkpoint and its evaluation."""
    world = init_distributed(config.cluster.timeout_minutes, config.train.threads_per_rank)
    with world.together("open the data"):
        loader = build_train_loader(
            config.data,
            image_size=config.model.image_size,
            context_length=config.model.text.context_length,
            global_batch_size=config.train.global_batch_size,
            rank=world.rank,
            world_size=world.world_size,
            seed=config.train.seed,
        )
        evaluation = Evaluation(config, world)

    model = initial_model(config)
    seed_everything(config.train.seed, world.rank)
    engine = ClipEngine(model, config, world)
    checkpoints = CheckpointManager(
        Path(config.run_dir),
        world,
        keep=config.train.checkpoints_kept,
        data_fingerprint=loader.fingerprint,
    )
    state = checkpoints.load_latest(engine)
    metrics = MetricsProcessor(config, world)

    metrics.start(state)
    batches = loader.batches(state.samples_seen, world.device)
    while state.step < config.train.steps:
        asked = time.monotonic()
        batch = next(batches)
        metrics.took(
            batch.keys,
            step=state.step,
            waited_s=time.monotonic() - asked,
            num_replaced=batch.num_bad,
            flops_per_sample=flops_per_sample(config.model, batch.tokens.shape[1]),
        )

        step_metrics = engine.train_step(batch)
        state.advance(config.train.global_batch_size)

        last = state.step == config.train.steps
        if last or state.step % config.logging.every_steps == 0:
            metrics.log(state, step_metrics)
        if last or state.step % config.train.checkpoint_every_steps == 0:
            with metrics.clock_stopped():
                checkpoints.save(engine, state)
        if last or (config.eval.every_steps and state.step % config.eval.every_steps == 0):
            with metrics.clock_stopped():
                results = evaluation.run(engine.encode_image, engine.encode_text, state.step)
            metrics.log_eval(state, results)

    metrics.close()
    loader.close()
    engine.close()


if __name__ == "__main__":
    sys.exit(launch.main("pipeline.train", train, sys.argv[1:]))

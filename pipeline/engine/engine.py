"""DeepSpeed behind one small class. Facts of DeepSpeed 0.19.8 that shape it are in README.md beside
this file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Precision, TrainJob
from pipeline.data import Batch
from pipeline.distributed import World
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import lr_factor
from pipeline.loss import clip_loss
from pipeline.model import CLIP
from pipeline.state import StepMetrics

# else DeepSpeed warns on every rank that it found no accelerator
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  isort: skip

# must happen before deepspeed joins the process group: on CPU it would compile a shared-memory op
# for 100 s, and a killed build leaves a lock that every later start waits for
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MAX_SKIPPED_IN_A_ROW = 20
CHECKPOINT_TAG = "engine"


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


class ClipEngine:
    """Owns towers, loss, optimizer and their sharding; one `train_step` is one optimizer step on
    the global batch."""

    def __init__(self, model: CLIP, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        self._skipped_in_a_row = 0
        self._inputs_checked = False
        model = model.to(world.device)
        optimizer = build_optimizer(model, config.train)
        steps, warmup = config.train.steps, config.train.warmup_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, steps=steps, warmup_steps=warmup)
        )
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            config=deepspeed_config(config),
        )

    def train_step(self, batch: Batch) -> StepMetrics:
        """Forward, global contrastive loss, backward, update.

        The loss of a rank is the mean over its rows; ZeRO averages gradients over ranks, which
        makes it the mean over the global batch. A step whose gradient is not finite on any rank is
        skipped on all of them.
        """
        images = batch.images.to(self._world.device, non_blocking=True)
        tokens = batch.tokens.to(self._world.device, non_blocking=True)
        output = self._engine(images, tokens)
        pair_ids = None
        if self._config.loss.same_caption_positive:
            pair_ids = batch.caption_ids.to(self._world.device, non_blocking=True)
        loss = clip_loss(
            output.image_features,
            output.text_features,
            output.logit_scale,
            group=torch.distributed.group.WORLD,
            normalize=True,
            pair_ids=pair_ids,
            # ranks compare shapes and look for NaN once: the check waits for the device, shapes
            # stay, and from here on the gradient norm tells what is not finite
            check_inputs=not self._inputs_checked,
        )
        self._inputs_checked = True
        lr = self._engine.get_lr()[0]
        self._engine.backward(loss)
        self._engine.step()
        self._count_skips()
        norm = self._engine.get_global_grad_norm()
        return StepMetrics(
            loss=loss.detach(),
            logit_scale=output.logit_scale.detach(),
            grad_norm=float(norm) if norm is not None else float("nan"),
            lr=lr,
            skipped_steps=int(self._engine.skipped_steps),
        )

    def _count_skips(self) -> None:
        self._skipped_in_a_row = (
            0 if self._engine.was_step_applied() else self._skipped_in_a_row + 1
        )
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"{self._skipped_in_a_row} steps in a row had a gradient that was not finite; "
                f"resume from the last "
                f"checkpoint in another run with a lower train.lr (now {self._config.train.lr}) "
                f"or a longer warm-up"
            )

    @property
    def model(self) -> CLIP:
        return self._engine.module

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_image(images)

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_text(tokens)

    def _autocast(self) -> torch.autocast:
        """DeepSpeed enters autocast only in its own forward; what goes round it would silently run
        in float32."""
        enabled = self._config.train.precision is Precision.bf16
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=enabled)

    def save(self, folder: Path) -> None:
        """Collective: every rank writes its shard of weights and moments below `folder`."""
        self._engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Collective; exact for the same ZeRO stage and world size. Loads only files that this
        project wrote (pickle)."""
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        if loaded is None:
            raise FileNotFoundError(f"{folder} holds no engine state")

    def close(self) -> None:
        self._engine.destroy()


def deepspeed_config(config: TrainJob) -> dict[str, Any]:
    """DeepSpeed's JSON, derived. gradient_accumulation_steps stays 1: the batch it counts is the
    local batch of one optimizer
    step, so that its batch identity holds on any number of ranks."""
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.local_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.grad_clip_norm,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": config.deepspeed.reduce_bucket_size,
            "allgather_bucket_size": config.deepspeed.allgather_bucket_size,
        },
        # on by default, and then it synchronises the device at each forward and step
        "timers": {"throughput": {"enabled": False}},
        "checkpoint": {"tag_validation": "Fail"},
    }
    if config.train.precision is Precision.bf16:
        # the list names classes exactly: subclasses would be reduced in float32
        content["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [
                "torch.nn.Linear",
                "torch.nn.Conv2d",
                "torch.nn.Embedding",
            ],
        }
    return content

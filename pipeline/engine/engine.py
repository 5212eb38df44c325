"""DeepSpeed behind one small class. README.md beside this file lists the facts of DeepSpeed 0.19.8
that shape it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import Precision, TrainJob
from pipeline.data import Batch
from pipeline.device_timer import DeviceTimer
from pipeline.distributed.world import World
from pipeline.engine.deepspeed_config import decides_on_host, deepspeed_config
from pipeline.engine.deepspeed_patches import import_without_inductor, skip_redundant_work
from pipeline.engine.grad_cache import CachedTower
from pipeline.engine.lamb import Lamb, spans_of
from pipeline.engine.objective import Objective, mean_cosine
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import lr_factor
from pipeline.engine.shards import ParameterShards
from pipeline.engine.towers import IMAGE, TEXT, Towers, compile_in_place
from pipeline.engine.update import Update
from pipeline.model import CLIP, clip_of_weights
from pipeline.state import StepMetrics

# otherwise DeepSpeed warns on every rank that it found no accelerator
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # isort: skip

# must happen before deepspeed joins the process group: on CPU it would compile a shared-memory op
# for 100 s, and a killed build leaves a lock that every later start waits for
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
import_without_inductor()


class PrecisionError(ValueError):
    """The device does not compute in the precision of the job."""


class _Taken(NamedTuple):
    """What forward and backward of one step leave, on the device."""

    loss: Tensor
    top1: Tensor | None
    logit_scale: Tensor
    mean_cosines: Tensor | None


def _mean_cosines(image: Tensor, text: Tensor) -> Tensor:
    """(2,) for StepMetrics, of this rank's features (n, d)."""
    return torch.stack([mean_cosine(image), mean_cosine(text)])


class ClipEngine:
    """Owns towers, loss, optimizer and their sharding; one `train_step` is one optimizer step on
    the global batch."""

    def __init__(self, model: CLIP, config: TrainJob, world: World) -> None:
        self._config, self._world = config, world
        fp16 = config.train.precision is Precision.fp16
        if fp16 and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
            raise PrecisionError(
                "train.precision = fp16: this device does not compute in float16; give bf16 or fp32"
            )
        # a communicator of its own: the features' collectives run beside DeepSpeed's
        self._objective = Objective(config.loss, dist.new_group(timeout=world.timeout))
        self._towers = Towers(model.to(world.device))
        compile_in_place(model, config.train.compile.value)
        self._plain: Towers | None = None
        optimizer = build_optimizer(model, config.train)
        num_trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        self._engine, *_ = deepspeed.initialize(
            model=self._towers, optimizer=optimizer, config=deepspeed_config(config, num_trained)
        )
        zero = self._engine.optimizer
        if config.deepspeed.zero_stage < 3:
            skip_redundant_work(zero)
        if isinstance(optimizer, Lamb):
            optimizer.bind(spans_of(zero), zero.dp_process_group)
        # DeepSpeed rounds buffers too: a mean of 122.77 to 123
        model.visual.set_pixel_statistics(config.model, world.device)
        self.shards = ParameterShards(
            self._engine,
            dict(model.named_parameters()),
            with_ema=config.train.ema_decay is not None,
        )
        self._update = Update(
            self._engine,
            self.shards,
            config.train.grad_clip_norm,
            on_host=decides_on_host(config),
        )
        self._refresh_exact_scalars()

    def train_step(self, batch: Batch, step: int) -> StepMetrics:
        """Forward, global contrastive loss, backward and update number `step` (0-based).
        Collective.

        The loss of a rank is the mean over its rows; ZeRO averages gradients over ranks, so the
        update is that of the mean over the global batch. If the gradient is not finite on any rank,
        all ranks skip the step. The host waits for the device only in the cases that
        `decides_on_host` names.
        """
        train, device = self._config.train, self._world.device
        factor = lr_factor(step, train)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = train.lr * factor * group["lr_scale"]
        images = batch.images.to(device, non_blocking=True)
        tokens = batch.tokens.to(device, non_blocking=True)
        caption_ids = batch.caption_ids.to(device, non_blocking=True)
        with_metrics = (step + 1) % self._config.logging.every_steps == 0 or step + 1 == train.steps
        timer = DeviceTimer(device)
        micro_batched = train.image_micro_batch_size or train.text_micro_batch_size
        take = self._take_micro_batches if micro_batched else self._take_whole
        taken = take(images, tokens, caption_ids, with_metrics, timer)
        norms, skipped = self._update.apply()
        if train.ema_decay is not None:
            self.shards.average(train.ema_decay, applied=1.0 - skipped)
        self._refresh_exact_scalars()
        return StepMetrics(
            loss=taken.loss.detach(),
            logit_scale=taken.logit_scale.detach().reshape(()),
            grad_norms=norms,
            skipped=skipped,
            lr=train.lr * factor,
            top1=taken.top1,
            mean_cosines=taken.mean_cosines,
            caption_ids=caption_ids,
            towers=timer,
        )

    def _take_whole(
        self,
        images: Tensor,
        tokens: Tensor,
        caption_ids: Tensor,
        with_metrics: bool,
        timer: DeviceTimer,
    ) -> _Taken:
        """One forward and backward over the whole share. The text features are gathered while the
        image tower runs; in the backward the text gradient is reduced while the image tower's
        backward runs (text_gather.py)."""
        timer.start()
        (text,) = self._engine(TEXT, tokens)
        overlapped = (
            self._objective.text_side(text) if self._config.train.overlap_text_gather else None
        )
        image, *scalars = self._engine(IMAGE, images)
        timer.stop()
        side = overlapped or self._objective.text_side(text)
        loss, top1 = self._objective(
            image, side, tuple(scalars), caption_ids, with_metrics=with_metrics
        )
        self._engine.backward(loss)
        cosines = _mean_cosines(image, text) if with_metrics else None
        return _Taken(loss, top1, scalars[0], cosines)

    def _take_micro_batches(
        self,
        images: Tensor,
        tokens: Tensor,
        caption_ids: Tensor,
        with_metrics: bool,
        timer: DeviceTimer,
    ) -> _Taken:
        """As `_take_whole`, by micro-batches (grad_cache.py). DeepSpeed reduces once, at the end of
        the `with` block; without it, stages 1 and 2 would silently keep only the gradient of the
        last micro-batch."""
        train = self._config.train
        with self._engine.coalesce_grad_reduction():
            timer.start()
            text = CachedTower(partial(self._engine, TEXT), tokens, train.text_micro_batch_size)
            overlapped = (
                self._objective.text_side(text.features) if train.overlap_text_gather else None
            )
            image = CachedTower(partial(self._engine, IMAGE), images, train.image_micro_batch_size)
            timer.stop()
            side = overlapped or self._objective.text_side(text.features)
            loss, top1 = self._objective(
                image.features, side, image.scalars, caption_ids, with_metrics=with_metrics
            )
            leaves = (image.features, *image.scalars, side.leaf)
            *of_image, of_text = torch.autograd.grad(loss, leaves)
            image.backward(self._engine.backward, tuple(of_image))
            text.backward(self._engine.backward, (side.gradient(of_text),))
        cosines = _mean_cosines(image.features, text.features) if with_metrics else None
        return _Taken(loss, top1, image.scalars[0], cosines)

    def _refresh_exact_scalars(self) -> None:
        if self._config.train.precision in (Precision.pure_bf16, Precision.fp16):
            names = ["logit_scale"] + ["logit_bias"] * (self._towers.clip.logit_bias is not None)
            self._towers.exact_scalars = self.shards.masters(names)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Prepare the model for encode_image and encode_text, and restore it afterwards: no
        dropout, and the average of the weights if the run keeps one.

        Entering and leaving is collective; inside, ranks may encode unequal numbers of batches.
        """
        averaged = self._config.train.ema_decay is not None
        self._engine.eval()
        if averaged:
            self.shards.swap_average()
        if self._config.deepspeed.zero_stage == 3:
            self._plain = self._unsharded()
        try:
            yield
        finally:
            self._plain = None
            if averaged:
                self.shards.swap_average()
            self._engine.train()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> (B, D); call it within `evaluating`."""
        return self._encode(IMAGE, images)

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (B, L) -> (B, D); call it within `evaluating`."""
        return self._encode(TEXT, tokens)

    def _encode(self, tower: str, batch: Tensor) -> Tensor:
        if self._plain is None:
            return self._engine(tower, batch)[0]
        enabled = self._config.train.precision is Precision.bf16
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=enabled):
            return self._plain(tower, batch)[0]

    def _unsharded(self) -> Towers:
        """A copy of the towers with whole weights: a stage 3 forward is collective, but ranks
        evaluate unequal numbers of batches."""
        live = self._towers.clip
        with deepspeed.zero.GatheredParameters(list(live.parameters())):
            weights = {name: value.detach().clone() for name, value in live.named_parameters()}
        copy = clip_of_weights(weights, self._config.model, self._config.loss.max_logit_scale)
        return Towers(copy).eval()

    def extra_state(self) -> dict[str, float | int | bool]:
        """State that a checkpoint needs besides the shards: the loss scale of fp16."""
        if self._config.train.precision is not Precision.fp16:
            return {}
        scaler = self._engine.optimizer.loss_scaler
        return {
            "loss_scale": float(scaler.cur_scale),
            "loss_scale_iteration": int(scaler.cur_iter),
            "loss_scale_last_overflow": int(scaler.last_overflow_iter),
            "loss_scale_hysteresis": int(scaler.cur_hysteresis),
        }

    def load_extra_state(self, state: dict[str, float | int | bool]) -> None:
        """Restore `extra_state`; call it after the shards were loaded and published."""
        if state:
            scaler = self._engine.optimizer.loss_scaler
            scaler.cur_scale = state["loss_scale"]
            scaler.cur_iter = int(state["loss_scale_iteration"])
            scaler.last_overflow_iter = int(state["loss_scale_last_overflow"])
            scaler.cur_hysteresis = int(state["loss_scale_hysteresis"])
        self._refresh_exact_scalars()

    def close(self) -> None:
        self._engine.destroy()

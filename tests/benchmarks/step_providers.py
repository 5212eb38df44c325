"""The training steps that bench_step compares: this project's engine and open_clip's own loop."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ModelConfig, TrainJob
from pipeline.config.composition import load_job
from pipeline.data.batches.batch import Batch
from pipeline.data.batches.device import DeviceMover
from pipeline.distributed.world import World, init_distributed
from pipeline.export.open_clip import open_clip_config
from pipeline.model import build_clip, flops_per_sample
from tests.benchmarks.step_batches import as_floats

Pair = tuple[Tensor, Tensor]
# train_one_epoch writes a line, and waits for the device, on rank 0: at its first and last step,
# which here are many. A run has them once in 100 steps.
_SILENT_RANK = 1


def one_rank() -> World:
    """The process group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | where)
    return init_distributed(timeout_minutes=5, threads_per_rank=None)


def bench_job(model: str, batch_size: int, precision: str, *overrides: str) -> TrainJob:
    """A job without data whose steps are never measured: no accuracy, no log line."""
    return load_job(
        [
            *(f"model={model}", "run_dir=unused", "data.stream=[pipe:true]"),
            *(f"train.precision={precision}", f"train.global_batch_size={batch_size}"),
            *("train.steps=1000000", "logging.every_steps=1000000", "train.lr=1e-4"),
            *("cluster.ranks_per_node=1", *overrides),
        ]
    )


def build_model(config: TrainJob) -> Any:
    torch.manual_seed(config.train.seed)
    return build_clip(
        config.model,
        init_logit_scale=config.loss.init_logit_scale,
        max_logit_scale=config.loss.max_logit_scale,
    )


class Ours:
    """One engine for all ways to run it: of L/14 a second one would not fit beside its peer. The
    numbers of micro-batches are read anew in each step."""

    name = "ours"

    def __init__(self, config: TrainJob, world: World) -> None:
        from pipeline.engine.engine import ClipEngine

        self.config, self._world = config, world
        self._engine = ClipEngine(build_model(config), config, world)
        self._mover = DeviceMover(world.device)
        self._step = 0

    def run(self, batches: Sequence[Batch], micro_batch_size: int, num_steps: int) -> None:
        """Copies as the loader does: of the next batch, while a step computes."""
        train = self.config.train
        train.image_micro_batch_size = train.text_micro_batch_size = micro_batch_size or None
        moving = None
        for batch in itertools.islice(itertools.cycle(batches), num_steps + 1):
            following = self._mover.start(batch)
            if moving is not None:
                self._engine.train_step(self._mover.finish(moving), self._step)
                self._step += 1
            moving = following

    def flops(self, batches: Sequence[Batch]) -> float:
        """Of the forward of a pair, at the lengths that the batches are cut to."""
        lengths = [batch.tokens.shape[1] for batch in batches]
        each = [flops_per_sample(self.config.model, length) for length in lengths]
        return sum(each) / len(each)

    def close(self) -> None:
        self._mover.close()
        self._engine.close()


class OpenClip:
    """open_clip's classes, and its train_one_epoch as it is, with
    --precision amp_bf16 --torchcompile --local-loss --gather-with-grad --grad-clip-norm 1.

    Kinder than its command line: AdamW is fused, the batch page-locked. It reads the learning rate
    once, and logs nothing.
    """

    name = "open_clip"

    def __init__(self, config: TrainJob, device: torch.device, *, compiled: bool) -> None:
        import open_clip
        from open_clip_train.train import train_one_epoch

        self.config, self._device, self._epoch = config.model, device, train_one_epoch
        model_config = open_clip_config(config.model)["model_cfg"]
        self._model: Any = open_clip.CLIP(**model_config, output_dict=True).to(device)
        self._optimizer = self._adamw(config)
        if compiled:
            self._model = torch.compile(self._model)
        self._loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        self._moved: list[Pair] = []
        self._precision = "amp_bf16" if config.train.precision.value == "bf16" else "fp32"

    def _adamw(self, config: TrainJob) -> torch.optim.AdamW:
        """Its groups: open_clip_train/main.py."""
        train = config.train
        groups: tuple[list[Any], list[Any]] = ([], [])
        for name, parameter in self._model.named_parameters():
            kept = parameter.ndim < 2 or any(x in name for x in ("bn", "ln", "bias", "logit_scale"))
            groups[kept].append(parameter)
        decays = (train.weight_decay, 0.0)
        return torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays)],
            lr=train.lr,
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            fused=True,
        )

    def inputs(self, batches: Sequence[Batch]) -> list[Pair]:
        return [as_floats(batch, self.config) for batch in batches]

    def run_on_device(self, inputs: Sequence[Pair], num_steps: int) -> None:
        """Without the copy, which open_clip waits for and ours does beside the step before."""
        if not self._moved:
            self._moved = [(i.to(self._device), t.to(self._device)) for i, t in inputs]
        self.run(self._moved, 1, num_steps)

    def run(self, inputs: Sequence[Pair], accum_freq: int, num_steps: int) -> None:
        arguments = SimpleNamespace(
            device=str(self._device),
            precision=self._precision,
            accum_freq=accum_freq,
            grad_clip_norm=1.0,
            distill=False,
            skip_scheduler=True,
            horovod=False,
            rank=_SILENT_RANK,
        )
        data = {"train": _Loader(inputs, num_steps * accum_freq)}
        with _tf32(), torch.enable_grad():
            self._epoch(
                *(self._model, data, self._loss, 0, self._optimizer, None, None, None),
                arguments,
            )

    def close(self) -> None:
        del self._model, self._optimizer, self._moved


class _Loader:
    """What train_one_epoch asks of a data set and of its loader."""

    def __init__(self, inputs: Sequence[Pair], num_batches: int) -> None:
        self._inputs, self.num_batches = inputs, num_batches
        self.num_samples = num_batches * len(inputs[0][1])
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Iterator[Pair]:
        return itertools.islice(itertools.cycle(self._inputs), self.num_batches)


def open_clip_flops(config: ModelConfig) -> int:
    """Of its forward of a pair: all tokens, and the whole of the last blocks, which ours reads at
    one token."""
    vision, text = config.vision, config.text
    patches = (config.image_size // vision.patch_size) ** 2
    left_out = 18 * (patches * vision.width**2 + (text.context_length - 1) * text.width**2)
    return flops_per_sample(config) + left_out


@contextmanager
def _tf32() -> Iterator[None]:
    """open_clip's main allows it; ours runs without."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

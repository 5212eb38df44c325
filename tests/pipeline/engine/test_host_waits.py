"""Between log lines the host never waits for the device: counted wherever a value of a tensor can
come to Python or decide in torch itself, which on CUDA is a synchronisation each."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gloo import run_gloo
from tests.pipeline.engine.probes import SMALL
from tests.pipeline.engine.training import batch_of, engine_of

METHODS = ["item", "tolist", "numpy", "cpu", "nonzero", "__array__"]
METHODS += ["__bool__", "__float__", "__int__", "__index__", "__complex__"]
# their sizes or results are known to the host only when the device is done
OPERATORS = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
}
# TextTower.forward groups rows of like length where the tokens are in host memory, and returns
# before that where they are on a device
CPU_ONLY = "pipeline/model/text.py"


class _Operators(TorchDispatchMode):
    """Sees what reaches a kernel, from Python or from within torch, forward and backward."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATORS:
            self._note(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Waits by "file:function" of the project or of DeepSpeed that asked for them."""
    from deepspeed.accelerator import get_accelerator

    waits: Counter[str] = Counter()

    def note(name: str) -> None:
        place = _caller()
        if not place.startswith(CPU_ONLY):
            waits[f"{place} {name}"] += 1

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            note(name)
            return original(*args, **options)

        return call

    with ExitStack() as stack:
        for name in METHODS:
            original = getattr(torch.Tensor, name)
            stack.enter_context(patch.object(torch.Tensor, name, noting(name, original)))
        for owner in (torch.cuda, type(get_accelerator())):
            original = owner.synchronize
            stack.enter_context(patch.object(owner, "synchronize", noting("sync", original)))
        for owner in (torch.cuda.Event, torch.cuda.Stream):
            original = owner.synchronize
            stack.enter_context(patch.object(owner, "synchronize", noting("sync", original)))
        stack.enter_context(_Operators(note))
        yield waits


def _caller() -> str:
    for frame in reversed(traceback.extract_stack()):
        for package in ("/pipeline/", "/deepspeed/"):
            if package in frame.filename and "/tests/" not in frame.filename:
                where = frame.filename.rsplit(package, 1)[1]
                return f"{package.strip('/')}/{where}:{frame.name}"
    return "torch"


def _waits(rank: int, world_size: int, jobs: list[list[str]]) -> list[list[dict[str, int]]]:
    """Of each job, by step; the third is that of a log line."""
    from deepspeed.accelerator import get_accelerator

    found = []
    for overrides in jobs:
        get_accelerator().is_fp16_supported = lambda: True
        engine, _ = engine_of(rank, world_size, [*SMALL, "logging.every_steps=3", *overrides])
        batches = [batch_of(step, rank, world_size) for step in range(4)]
        of_job = []
        for step, batch in enumerate(batches):
            with counted_waits() as waits:
                engine.train_step(batch, step)
            of_job.append(dict(waits))
        engine.close()
        found.append(of_job)
    return found


FREE = [
    ["deepspeed.zero_stage=1", "train.precision=fp32"],
    ["deepspeed.zero_stage=1", "train.precision=pure_bf16", "loss.kind=sigmoid"],
    ["deepspeed.zero_stage=2", "train.precision=bf16", "train.ema_decay=0.9"],
    ["deepspeed.zero_stage=2", "train.image_micro_batch_size=2", "train.text_micro_batch_size=4"],
    ["deepspeed.zero_stage=1", "train.image_micro_batch_size=4", "train.precision=bf16"],
    ["deepspeed.zero_stage=1", "train.optimizer=lamb", "train.image_lr_scale=0"],
]


@pytest.mark.slow
def test_nothing_waits_after_the_first_step():
    for rank in run_gloo(_waits, 2, FREE, timeout_s=200):
        for overrides, (first, *others) in zip(FREE, rank, strict=True):
            # where ranks compare shapes and look for NaN: this test does see waits
            assert all(place.startswith("pipeline/loss/checks.py") for place in first), first
            assert first
            assert others == [{}, {}, {}], overrides


BOUND = {
    ("deepspeed.zero_stage=3",): "deepspeed/runtime/utils.py:is_invalid_grad_norm __bool__",
    ("train.precision=fp16",): "deepspeed/runtime/zero/stage_1_and_2.py:has_overflow item",
    ("deepspeed.offload_optimizer=true",): (
        "deepspeed/runtime/zero/stage_1_and_2.py:complete_grad_norm_calculation_for_cpu_offload "
        "item"
    ),
}


@pytest.mark.slow
def test_what_decides_on_the_host_is_deepspeeds():
    """Stage 3, fp16 and offload wait as README.md says, in DeepSpeed's own code."""
    for rank in run_gloo(_waits, 2, [list(words) for words in BOUND], timeout_s=200):
        for place, (_, *others) in zip(BOUND.values(), rank, strict=True):
            for waits in others:
                assert place in waits, waits
                assert all(found.startswith("deepspeed/") for found in waits), waits

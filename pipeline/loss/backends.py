"""Which module computes a block: Triton kernels on CUDA, plain torch tiles everywhere else."""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.loss import tiled
from pipeline.loss.block import BlockFunctions
from pipeline.loss.checks import InputReport
from pipeline.loss.tile_shapes import interpreting

BACKENDS = ("auto", "torch", "triton")


def choose_backend(backend: str, features: Any, report: InputReport) -> BlockFunctions:
    """The module for ``features``; a request that cannot be met goes into ``report``.

    "auto" is Triton for float16 and bfloat16 on a CUDA device of compute capability 8.0 or more,
    where it is installed, and torch otherwise: in float32 the kernels have no tensor cores to win
    with.
    """
    if not report.require(
        backend in BACKENDS, f"backend is {backend!r}; pass one of {', '.join(BACKENDS)}"
    ):
        return tiled
    if not isinstance(features, Tensor):
        return tiled  # the report has said so already
    reason = _why_not_triton(features)
    half = features.dtype in (torch.float16, torch.bfloat16)
    if backend == "torch" or (backend == "auto" and (reason or not half)):
        return tiled
    if report.require(not reason, f"backend 'triton' {reason}; pass backend='torch' or 'auto'"):
        from pipeline.loss import triton_blocks  # imports triton, which not every machine has

        return cast(BlockFunctions, triton_blocks)
    return tiled


def _why_not_triton(features: Tensor) -> str:
    if importlib.util.find_spec("triton") is None:
        return "needs the triton package, which is not installed"
    if features.dtype == torch.float64:
        return "computes in float32, and the features are float64"
    if interpreting():
        # upstream multiplies the bit patterns of bfloat16 there (triton pull request 11585)
        is_bfloat16 = features.dtype == torch.bfloat16
        return "cannot interpret bfloat16" if is_bfloat16 else ""
    if features.device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, and the features are on {features.device}"
    if torch.cuda.get_device_capability(features.device) < (8, 0):
        return f"needs compute capability 8.0, and {features.device} has less"
    return ""

"""The losses that bench_loss compares: ours, and the peers that happen to be installed.

A provider takes image features (n, d), text features (n, d), both of unit length, and the
logarithm of the scale, and returns the mean loss of one process.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.loss import clip_loss, sigmoid_loss

Provider = Callable[[Tensor, Tensor, Tensor], Any]
ALL_LOGITS = 1 << 62


def recompute(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return clip_loss(image, text, log_scale, stash_bytes=0, check_inputs=image.device.type == "cpu")


def keep(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    checking = image.device.type == "cpu"
    return clip_loss(image, text, log_scale, stash_bytes=ALL_LOGITS, check_inputs=checking)


def default(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return clip_loss(image, text, log_scale, check_inputs=image.device.type == "cpu")


def sigmoid(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    bias = torch.full_like(log_scale, -10.0)
    return sigmoid_loss(image, text, log_scale, bias, check_inputs=image.device.type == "cpu")


def open_clip(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """open_clip's ClipLoss with local_loss and gather_with_grad, restated from its definition.

    Two products, image against all texts and text against all images, in the features' dtype, and
    a cross entropy of each, in float32.
    """
    scale, all_image, all_text, first = log_scale.exp(), image, text, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        all_image, all_text = (torch.cat(all_gather(side)) for side in (image, text))
        first = dist.get_rank() * len(image)
    labels = torch.arange(first, first + len(image), device=image.device)
    by_image = (scale * image).to(image.dtype) @ all_text.T
    by_text = (scale * text).to(text.dtype) @ all_image.T
    return (
        F.cross_entropy(by_image.float(), labels) + F.cross_entropy(by_text.float(), labels)
    ) / 2


def linear_cross_entropy_twice(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """PyTorch's chunked one-direction loss (2.13), in both directions."""
    labels = torch.arange(len(image), device=image.device)
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy
    scale = log_scale.exp()
    by_image = loss((scale * image).to(image.dtype), text, labels, options=options)
    by_text = loss((scale * text).to(text.dtype), image, labels, options=options)
    return (by_image + by_text) / 2


def cpu_providers(num_rows: int) -> dict[str, Provider]:
    """Past 4,096 rows ours recomputes by default, and the slowest peer is left out."""
    providers: dict[str, Provider] = {"ours": default, "open_clip": open_clip}
    if num_rows <= 4096:
        providers["ours, recomputing"] = recompute
        if hasattr(F, "linear_cross_entropy"):
            providers["linear_cross_entropy x2"] = linear_cross_entropy_twice
    return providers


def gpu_providers(log_scale: float) -> dict[str, Provider]:
    """Those that this machine has. memeff takes its temperature as a Python number."""
    providers: dict[str, Provider] = {
        "ours, recomputing": recompute,
        "ours, keeping logits": keep,
        "ours, sigmoid": sigmoid,
        "open_clip": open_clip,
        "open_clip compiled": torch.compile(open_clip),
    }
    if hasattr(F, "linear_cross_entropy"):
        providers["linear_cross_entropy x2"] = linear_cross_entropy_twice
    if importlib.util.find_spec("memeff"):
        from memeff.clip_loss import MemoryEfficientCLIPLoss

        memeff = MemoryEfficientCLIPLoss(
            temperature=math.exp(-log_scale), normalized_inputs=True, stable=False
        )
        providers["memeff"] = lambda image, text, scale: memeff(image, text)
    if importlib.util.find_spec("inf_cl"):
        from inf_cl import cal_flash_loss

        def inf_cl(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            by_image = cal_flash_loss(image, text, scale=scale.exp()).mean()
            return (by_image + cal_flash_loss(text, image, scale=scale.exp()).mean()) / 2

        providers["inf_cl"] = inf_cl
    return providers

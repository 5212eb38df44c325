"""The optimizer that ZeRO shards: fused AdamW or LAMB, both able to clip and to skip on the device.

Before `step()` the engine may set two tensors on it, as torch.amp.GradScaler does, 0-dimensional
(torch's AdamW fails on shape (1,)), float32, on the parameters' device:
    optimizer.grad_scale    gradients are divided by it; max(1, norm / limit) is clipping
    optimizer.found_inf     1.0: weights, moments and step counter stay as they are; else 0.0
so that neither the norm nor its being finite is ever read by the host.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import Optimizer, TrainConfig
from pipeline.engine.lamb import Lamb
from pipeline.engine.parameter_groups import freeze_towers, parameter_groups


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW | Lamb:
    """Over the parameters that learn; those of a tower whose lr scale is 0 are frozen here."""
    freeze_towers(model, train)
    groups = parameter_groups(model, train)
    betas = (train.beta1, train.beta2)
    if train.optimizer is Optimizer.lamb:
        return Lamb(groups, lr=train.lr, betas=betas, eps=train.eps)
    # fused=True is torch's own kernel on CUDA and CPU alike: DeepSpeed's FusedAdam would be
    # compiled at the first start. No other of torch's takes grad_scale and found_inf.
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, eps=train.eps, fused=True)

"""The optimizer that ZeRO shards: fused AdamW or LAMB, both able to clip and to skip on the device.

Before `step()` the engine may set two attributes on it, as torch.amp.GradScaler does: float32
tensors of shape () (torch's AdamW fails on (1,)) on the parameters' device.
    optimizer.grad_scale    gradients are divided by it; max(1, norm / limit) clips them
    optimizer.found_inf     1.0: weights, moments and step counter stay as they are; else 0.0
The host then never reads the norm, nor whether it is finite.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import Optimizer, TrainConfig
from pipeline.engine.lamb import Lamb
from pipeline.engine.parameter_groups import freeze_towers, parameter_groups


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW | Lamb:
    """The optimizer of all parameters that learn. A tower whose lr scale is 0 is frozen here."""
    freeze_towers(model, train)
    groups = parameter_groups(model, train)
    betas = (train.beta1, train.beta2)
    if train.optimizer is Optimizer.lamb:
        return Lamb(groups, lr=train.lr, betas=betas, eps=train.eps)
    # fused=True is torch's own kernel on CUDA and CPU alike: DeepSpeed's FusedAdam would be
    # compiled at the first start. Only torch's fused optimizers take grad_scale and
    # found_inf.
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, eps=train.eps, fused=True)

"""AdamW and who is decayed by it."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config import TrainConfig

# Embeddings are looked up, not multiplied: pulling rows of rare words to zero between their
# occurrences only forgets them.
NOT_DECAYED = ("embedding", "logit_scale")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with decay; gains, biases, embeddings and the logit scale without."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or any(word in name for word in NOT_DECAYED)
        (kept if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """fused=True is torch's own kernel on CUDA and CPU alike: DeepSpeed's FusedAdam would be
    compiled at the first start."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )

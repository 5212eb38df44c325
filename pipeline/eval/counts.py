"""Sums counts over all ranks in one reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.distributed.group import Group


def count_sum(ranks: Group, counts: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Named int64 counts of any shapes, summed over the ranks in one reduction; back on the CPU."""
    flat = torch.cat([value.reshape(-1).to(device, torch.int64) for value in counts.values()])
    parts = ranks.sum(flat).cpu().split([value.numel() for value in counts.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(counts.items(), parts, strict=True)
    }

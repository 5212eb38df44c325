"""A CLIP of two and three blocks that a test can step on a CPU."""

from __future__ import annotations

import torch

from pipeline.config import ModelConfig, TextConfig, VisionConfig
from pipeline.model import CLIP, build_clip
from pipeline.model.text import EOT_TOKEN


def small_clip(*, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return build_clip(
        ModelConfig(
            embed_dim=16,
            image_size=16,
            vision=VisionConfig(patch_size=8, width=16, num_layers=2, num_heads=2),
            text=TextConfig(context_length=8, width=16, num_layers=3, num_heads=2),
        ),
        init_logit_scale=2.0,
        max_logit_scale=4.6,
    )


def small_batch(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, 16, 16), dtype=torch.uint8)
    tokens = torch.randint(1, 1000, (batch, 8))
    tokens[:, -1] = EOT_TOKEN
    return images, tokens

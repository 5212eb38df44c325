"""The model group files, and small models for the tests of the towers and of the export."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf
from torch import Tensor

from pipeline.config import ModelConfig, Stem, TextConfig, VisionConfig
from pipeline.config.composition import CONF_DIR
from pipeline.model import CLIP, build_clip

NAMES = ("demo", "tiny", "vit_b_16", "vit_b_32", "vit_l_14")


def model_config(name: str) -> ModelConfig:
    merged = OmegaConf.merge(
        OmegaConf.structured(ModelConfig), OmegaConf.load(CONF_DIR / "model" / f"{name}.yaml")
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, ModelConfig)
    return config


def small_config(*, stem: Stem = Stem.patch, quick_gelu: bool = False) -> ModelConfig:
    """Not a size equal to another, so that a swapped axis shows."""
    return ModelConfig(
        name="small",
        embed_dim=24,
        image_size=32,
        quick_gelu=quick_gelu,
        vision=VisionConfig(patch_size=8, width=48, num_layers=3, num_heads=4, stem=stem),
        text=TextConfig(context_length=20, width=32, num_layers=2, num_heads=2),
    )


def small_clip(config: ModelConfig | None = None, seed: int = 0) -> CLIP:
    """In evaluation mode, every parameter random: zeros and ones would hide a forgotten one."""
    torch.manual_seed(seed)
    model = build_clip(
        config or small_config(), init_logit_scale=2.6592600369, max_logit_scale=4.6051701860
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def random_images(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def random_tokens(lengths: list[int], columns: int, seed: int = 0) -> Tensor:
    """Rows of start, length - 2 words, end, then zeros."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), columns, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, 0], tokens[row, length - 1] = 49406, 49407
        words = torch.randint(1, 49406, (length - 2,), generator=generator)
        tokens[row, 1 : length - 1] = words
    return tokens

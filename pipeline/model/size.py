"""Size of a model and its FLOPs per sample, which MFU needs."""

from __future__ import annotations

from torch import nn

from pipeline.config import ModelConfig, Stem


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_sample(config: ModelConfig, text_tokens: int | None = None) -> int:
    """Floating-point operations of the forward pass of one pair; a training step takes three times.

    A multiply-add counts 2; matrix products and convolutions count, the rest is below 1 %. With
    width w, n tokens and L layers a tower has
        stem + L (24 n w^2 + 4 n^2 w) - (n - 1) 18 w^2 + 2 w embed_dim
    where the subtraction is what the last block leaves out, because one token of it is read.
    Without it the sums are those of open_clip's docs/model_profile.csv (ViT-B/32: 14.78 GFLOP).
    Causal attention counts in full, as is usual; patches that training leaves out do not count.

    text_tokens: tokens a caption as computed (a batch is cut after its longest); None: all of
    context_length.
    """
    vision, text = config.vision, config.text
    patches = (config.image_size // vision.patch_size) ** 2
    image_tokens = max(1, round(patches * (1.0 - vision.patch_dropout))) + 1
    image = _stem_flops(config) + 2 * vision.width * config.embed_dim
    image += _transformer_flops(vision.width, vision.num_layers, image_tokens)
    text_length = text.context_length if text_tokens is None else text_tokens
    return (
        image
        + _transformer_flops(text.width, text.num_layers, text_length)
        + 2 * text.width * config.embed_dim
    )


def _transformer_flops(width: int, num_layers: int, tokens: int) -> int:
    full = num_layers * (24 * tokens * width**2 + 4 * tokens**2 * width)
    return full - (tokens - 1) * 18 * width**2


def _stem_flops(config: ModelConfig) -> int:
    width, patch_size = config.vision.width, config.vision.patch_size
    patches = (config.image_size // patch_size) ** 2
    if config.vision.stem is Stem.patch:
        return 2 * 3 * patch_size**2 * patches * width
    # The three convolutions of stride 2 give 16, 4 and 1 positions a patch of 8 x 8 pixels.
    channels = (3, width // 4, width // 2, width)
    positions = (16 * patches, 4 * patches, patches)
    return sum(2 * 9 * channels[i] * channels[i + 1] * positions[i] for i in range(3))

"""Vision Transformer as in CLIP (arXiv 2103.00020): stem, class token, ln_pre, blocks, ln_post,
projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, Stem
from pipeline.model.layers import Transformer

CONV_STEM_STRIDE = 8


class PatchStem(nn.Module):
    """A convolution of stride = kernel = patch_size without bias, written as the matrix product
    that it is.

    The pixels are cut into patches while they are one byte each. weight (W, 3 P P) is the
    convolution's, flattened.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(3 * patch_size**2, width, bias=False)

    def forward(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """uint8 (B, 3, S, S), mean and std (3,) in units of pixel values -> (B, patches, W)."""
        batch, channels, size, _ = images.shape
        grid, patch = size // self.patch_size, self.patch_size
        cut = images.reshape(batch, channels, grid, patch, grid, patch)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels, patch * patch)
        pixels = (patches.to(mean.dtype) - mean[:, None]) / std[:, None]
        # pixels are normalised in float32 whatever the weights are
        return self.projection(pixels.flatten(2).to(self.projection.weight.dtype))


class ConvStem(nn.Module):
    """Three 3x3 convolutions of stride 2 with GELU between ("Early convolutions help transformers",
    arXiv 2106.14881).

    No batch norm: its statistics would mix the samples of a batch, and differ by rank.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"the conv stem's width must divide by 4, but is {width}")
        self.conv_1 = nn.Conv2d(3, width // 4, 3, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.activation = nn.GELU()

    def forward(self, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """uint8 (B, 3, S, S), mean and std (3,) in units of pixel values -> (B, S/8 * S/8, W)."""
        x = (images.to(mean.dtype) - mean[:, None, None]) / std[:, None, None]
        x = x.to(self.conv_1.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.activation(self.conv_1(x))
        x = self.activation(self.conv_2(x))
        return self.conv_3(x).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """uint8 (B, 3, image_size, image_size) RGB -> (B, embed_dim), not normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision, width = config.vision, config.vision.width
        stride = vision.patch_size
        if vision.stem is Stem.conv and stride != CONV_STEM_STRIDE:
            raise ValueError(
                f"model.vision.patch_size is {stride}, but the conv stem's stride is "
                f"{CONV_STEM_STRIDE}: set patch_size={CONV_STEM_STRIDE}, or stem=patch"
            )
        if stride < 1 or config.image_size < stride or config.image_size % stride:
            raise ValueError(
                f"model.image_size={config.image_size} is not a multiple of "
                f"model.vision.patch_size={stride}: change one of them"
            )
        self.image_size = config.image_size
        self.patch_dropout = vision.patch_dropout
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.set_pixel_statistics(config, torch.get_default_device())

        self.stem = ConvStem(width) if vision.stem is Stem.conv else PatchStem(stride, width)
        num_patches = (config.image_size // stride) ** 2
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            vision.num_layers,
            vision.num_heads,
            causal=False,
            quick_gelu=config.quick_gelu,
            dropout=config.dropout,
        )
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Raises ValueError for anything but uint8 (B, 3, image_size, image_size): floats would be
        normalised twice.
        """
        expected = (3, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be uint8 of shape (B, {', '.join(map(str, expected))}), "
                f"but are {images.dtype} of shape {tuple(images.shape)}"
            )
        patches = self.stem(images, self.pixel_mean, self.pixel_std)
        patches = patches + self.positional_embedding[1:]
        if self.training and self.patch_dropout:
            patches = self._drop_patches(patches)
        class_token = self.class_embedding + self.positional_embedding[0]
        class_token = class_token.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        return self.projection(self.ln_post(self.transformer(self.ln_pre(x), 0)))

    def set_pixel_statistics(self, config: ModelConfig, device: torch.device) -> None:
        """What is subtracted from pixels and what they are divided by, float32 whatever the weights
        are. In pixel values, so that uint8 needs no division by 255 first; not in checkpoints: the
        config has them."""
        if len(config.image_mean) != 3 or len(config.image_std) != 3 or 0 in config.image_std:
            raise ValueError(
                f"model.image_mean={config.image_mean}, model.image_std={config.image_std}: give "
                "three values each, and no deviation of 0"
            )
        for name, values in (("pixel_mean", config.image_mean), ("pixel_std", config.image_std)):
            value = torch.tensor(values, dtype=torch.float32, device=device) * 255
            self.register_buffer(name, value, persistent=False)

    def _drop_patches(self, patches: Tensor) -> Tensor:
        """Patch dropout: (B, patches, W) -> (B, kept, W), a different random subset for each
        image."""
        batch, number, width = patches.shape
        kept = max(1, round(number * (1.0 - self.patch_dropout)))
        chosen = torch.rand(batch, number, device=patches.device).topk(kept, dim=1).indices
        return patches.gather(1, chosen[..., None].expand(-1, -1, width))

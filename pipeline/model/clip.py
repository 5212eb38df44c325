"""CLIP: two towers and a learnable temperature (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import LossKind, ModelConfig, TrainJob
from pipeline.model.text import TextTower
from pipeline.model.vision import VisionTower


class ClipOutput(NamedTuple):
    image_features: Tensor
    """(B, embed_dim), not normalised."""
    text_features: Tensor
    """(B, embed_dim), not normalised."""
    logit_scale: Tensor
    """(1,) float32, log-space, clamped."""


class _ClampOneWay(torch.autograd.Function):
    """Clamp whose gradient vanishes only where a descent step would lead further out of the range.

    torch.clamp's gradient is 0 on both sides of the border: a scale that a step or a checkpoint
    brought beyond it would stay there for ever. The straight-through gradient lets it run away.
    Here it overshoots by the optimizer's momentum and comes back as soon as the loss asks for it.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        outward = ((value > ctx.high) & (grad < 0)) | ((value < ctx.low) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


class CLIP(nn.Module):
    """Image and text tower with a shared embedding space; see ClipOutput for what comes out."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        init_logit_scale: float,
        max_logit_scale: float,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= init_logit_scale <= max_logit_scale:
            raise ValueError(
                f"loss.init_logit_scale={init_logit_scale} is outside "
                f"[0, loss.max_logit_scale={max_logit_scale}]; both are logarithms: "
                "ln(1/0.07) = 2.659, ln(100) = 4.605"
            )
        self.max_logit_scale = max_logit_scale
        self.visual = VisionTower(config)
        self.text = TextTower(config)
        # Shape (1,): DeepSpeed 0.19.8 fails on a 0-dim parameter.
        self.logit_scale = nn.Parameter(torch.full((1,), init_logit_scale))
        self.logit_bias = None
        if init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.full((1,), init_logit_bias))

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, image_size, image_size) RGB -> (B, embed_dim), not normalised."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (B, L), L <= context_length -> (B, embed_dim), not normalised."""
        return self.text(tokens)

    def forward(self, images: Tensor, tokens: Tensor) -> ClipOutput:
        text_features = self.encode_text(tokens)
        image_features = self.encode_image(images)
        return ClipOutput(image_features, text_features, self.clamp_logit_scale(self.logit_scale))

    def clamp_logit_scale(self, logit_scale: Tensor) -> Tensor:
        """Clamp to [0, max_logit_scale]. Only operations that autocast does not run in bf16, which
        would round the scale by up to 1.6 % at ln(100)."""
        return _ClampOneWay.apply(logit_scale, 0.0, self.max_logit_scale)


def build_clip(
    config: ModelConfig,
    *,
    init_logit_scale: float,
    max_logit_scale: float,
    init_logit_bias: float | None = None,
) -> CLIP:
    """A CLIP with fresh weights from torch's global generator, in float32, on the default device;
    with a logit_bias, which only the sigmoid loss has, where its start is given.

    Raises ValueError naming the field when the config's sizes do not fit together.
    """
    return CLIP(
        config,
        init_logit_scale=init_logit_scale,
        max_logit_scale=max_logit_scale,
        init_logit_bias=init_logit_bias,
    )


def initial_clip(job: TrainJob) -> CLIP:
    """`build_clip` with the scalars that the job's loss starts with."""
    return build_clip(
        job.model,
        init_logit_scale=job.loss.init_logit_scale,
        max_logit_scale=job.loss.max_logit_scale,
        init_logit_bias=job.loss.init_logit_bias if job.loss.kind is LossKind.sigmoid else None,
    )


def clip_of_weights(
    weights: Mapping[str, Tensor], config: ModelConfig, max_logit_scale: float
) -> CLIP:
    """Build the model of `weights` (float32, by parameter name) for inference, not for training.

    Draws no random numbers. Raises ValueError if names or shapes differ.
    """
    with torch.device("meta"):
        model = build_clip(
            config,
            init_logit_scale=0.0,
            max_logit_scale=max_logit_scale,
            init_logit_bias=0.0 if "logit_bias" in weights else None,
        )
    try:
        model.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of model {config.name}: {error}") from error
    device = next(model.parameters()).device
    model.visual.set_pixel_statistics(config, device)
    return model.eval()

"""The one module that DeepSpeed wraps.

Stage 3 gathers a parameter only around the forward it belongs to, and DeepSpeed enters autocast
only in the engine's forward: everything that uses a weight must go through here.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.model import CLIP

TEXT, IMAGE = "text", "image"


class Towers(nn.Module):
    """forward(TEXT, tokens) -> (text_features,); forward(IMAGE, images) -> (image_features,
    logit_scale) and, with the sigmoid loss, logit_bias."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        self.exact_scalars: dict[str, Tensor] = {}
        """float32 masters of the scalars, by parameter name, where the parameters have 16 bits:
        bf16 rounds the scale by up to 1.6 % near ln(100). Empty otherwise."""

    def forward(self, tower: str, batch: Tensor) -> tuple[Tensor, ...]:
        if tower == TEXT:
            return (self.clip.encode_text(batch),)
        image_features = self.clip.encode_image(batch)
        scale = self.clip.clamp_logit_scale(self._exact("logit_scale", self.clip.logit_scale))
        if self.clip.logit_bias is None:
            return image_features, scale
        return image_features, scale, self._exact("logit_bias", self.clip.logit_bias)

    def _exact(self, name: str, parameter: Tensor) -> Tensor:
        """The master's value, (1,) float32, whose gradient goes to the parameter."""
        value = parameter.float().clone()  # stage 3 frees the parameter after the forward
        master = self.exact_scalars.get(name)
        return value if master is None else value + (master - value).detach()


def compile_in_place(clip: CLIP, parts: str) -> None:
    """Compile the "towers", their "blocks", or nothing. Call it before DeepSpeed hooks the modules.

    `nn.Module.compile` keeps the names of parameters; torch.compile(module) would put _orig_mod.
    before each.
    """
    if parts == "towers":
        clip.visual.compile()
        clip.text.compile()
    elif parts == "blocks":
        for tower in (clip.visual, clip.text):
            for block in tower.transformer.blocks:
                block.compile()

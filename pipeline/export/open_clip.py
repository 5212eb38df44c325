"""open_clip's folder: open_clip_config.json and open_clip_model.safetensors.

    open_clip.create_model_from_pretrained("local-dir:PATH")
    open_clip.get_tokenizer("local-dir:PATH")

open_clip is not a dependency (it needs torchvision). The file is read back by `read`, written here
from open_clip's parameter names and PyTorch's own multi-head attention, not from this project's
towers: a wrong name, order of q, k, v, transposition or activation shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ModelConfig, Stem
from pipeline.export.card import on_opening, python, write_card
from pipeline.export.folder import ExportError, Features, Probe, write_json, write_weights
from pipeline.model.text import EOT_TOKEN

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
_LOADING = """\
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
image = preprocess(open_picture("cat.jpg"))[None]
text = tokenizer(["a photo of a cat"])"""
_TEXT_NOTE = """\
Not measured here: open_clip was not run. Its tokenizer (version 3.3.0) cleans as the training did
and gives the same ids for every assigned character below U+20000, with two exceptions: U+0345, and
an apostrophe before "ſ"."""
_SIZE_NOTE = """\
Not measured here: open_clip was not run. Its transform (torchvision's Resize and CenterCrop on a
Pillow picture) follows the same steps as the training's evaluation, at odd sizes too."""
_BLOCK = {
    "ln_1.weight": "ln_1.weight",
    "ln_1.bias": "ln_1.bias",
    "attention.qkv.weight": "attn.in_proj_weight",
    "attention.qkv.bias": "attn.in_proj_bias",
    "attention.out.weight": "attn.out_proj.weight",
    "attention.out.bias": "attn.out_proj.bias",
    "ln_2.weight": "ln_2.weight",
    "ln_2.bias": "ln_2.bias",
    "mlp.up.weight": "mlp.c_fc.weight",
    "mlp.up.bias": "mlp.c_fc.bias",
    "mlp.down.weight": "mlp.c_proj.weight",
    "mlp.down.bias": "mlp.c_proj.bias",
}


def write(weights: dict[str, Tensor], config: ModelConfig, folder: Path, probe: Probe) -> str:
    if config.vision.stem is not Stem.patch:
        raise ExportError(
            f"model.vision.stem={config.vision.stem.value}: open_clip's ViT has no convolutional "
            "stem; export format=native, or train with model.vision.stem=patch"
        )
    write_weights(folder / WEIGHTS, convert(weights, config))
    content = open_clip_config(config)
    if "logit_bias" in weights:  # open_clip makes the parameter only where the config starts it
        content["model_cfg"]["init_logit_bias"] = weights["logit_bias"].item()
    write_json(folder / CONFIG, content)
    kept = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = read(load_file(str(folder / WEIGHTS)), kept, probe)
    checked = probe.check(found, "an independent reader of open_clip's names")
    report = f"open_clip folder, {checked} (open_clip itself was not run)"
    sections = {
        "Load it": python(_LOADING),
        "Pictures": on_opening(),
        "Sizes of pictures": _SIZE_NOTE,
        "Texts": _TEXT_NOTE,
    }
    write_card(folder, config, library="open_clip", checked=report, sections=sections)
    return report


def convert(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """By open_clip's names; its projections are (width, embed_dim) matrices, not layers."""
    patch, width = config.vision.patch_size, config.vision.width
    converted = {
        "visual.class_embedding": weights["visual.class_embedding"],
        "visual.positional_embedding": weights["visual.positional_embedding"],
        "visual.conv1.weight": weights["visual.stem.projection.weight"].view(
            width, 3, patch, patch
        ),
        "visual.proj": weights["visual.projection.weight"].T,
        "positional_embedding": weights["text.positional_embedding"],
        "token_embedding.weight": weights["text.token_embedding.weight"],
        "text_projection": weights["text.projection.weight"].T,
        "logit_scale": weights["logit_scale"].reshape(()),
    }
    if "logit_bias" in weights:
        converted["logit_bias"] = weights["logit_bias"].reshape(())
    for ours, theirs in (("visual", "visual."), ("text", "")):
        for norm in ("ln_pre", "ln_post") if ours == "visual" else ("ln_final",):
            for kind in ("weight", "bias"):
                converted[f"{theirs}{norm}.{kind}"] = weights[f"{ours}.{norm}.{kind}"]
    for number in range(config.vision.num_layers):
        for ours, theirs in _BLOCK.items():
            converted[f"visual.transformer.resblocks.{number}.{theirs}"] = weights[
                f"visual.transformer.blocks.{number}.{ours}"
            ]
    for number in range(config.text.num_layers):
        for ours, theirs in _BLOCK.items():
            converted[f"transformer.resblocks.{number}.{theirs}"] = weights[
                f"text.transformer.blocks.{number}.{ours}"
            ]
    return converted


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """open_clip has no number of heads for images, but head_width."""
    vision, text = config.vision, config.text
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.quick_gelu,
            "vision_cfg": {
                "image_size": config.image_size,
                "layers": vision.num_layers,
                "width": vision.width,
                "head_width": vision.width // vision.num_heads,
                "patch_size": vision.patch_size,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.num_heads,
                "layers": text.num_layers,
            },
        },
        "preprocess_cfg": {
            "mean": list(config.image_mean),
            "std": list(config.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def read(state: dict[str, Tensor], config: dict[str, Any], probe: Probe) -> Features:
    """The features of an open_clip CLIP with these weights; uses every tensor of `state` once."""
    left, model, preprocess = dict(state), config["model_cfg"], config["preprocess_cfg"]
    vision, text, quick = model["vision_cfg"], model["text_cfg"], model["quick_gelu"]
    pixels = probe.normalised_pixels(preprocess["mean"], preprocess["std"])
    patches = F.conv2d(pixels, left.pop("visual.conv1.weight"), stride=vision["patch_size"])
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([left.pop("visual.class_embedding").expand(len(x), 1, -1), x], 1)
    x = _norm(x + left.pop("visual.positional_embedding"), left, "visual.ln_pre")
    heads = vision["width"] // vision["head_width"]
    x = _blocks(x, left, "visual.transformer", vision["layers"], heads, quick, causal=False)
    image = _norm(x[:, 0], left, "visual.ln_post") @ left.pop("visual.proj")

    x = left.pop("token_embedding.weight")[probe.tokens] + left.pop("positional_embedding")
    x = _blocks(x, left, "transformer", text["layers"], text["heads"], quick, causal=True)
    end = (probe.tokens == EOT_TOKEN).float().argmax(1)
    x = _norm(x, left, "ln_final")[torch.arange(len(x)), end] @ left.pop("text_projection")
    scale = left.pop("logit_scale").exp().item()
    if "init_logit_bias" in model:
        left.pop("logit_bias")
    if left:
        raise ExportError(f"open_clip has no parameter named {', '.join(sorted(left))}")
    return Features(F.normalize(image, dim=1), F.normalize(x, dim=1), scale)


def _norm(x: Tensor, left: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = left.pop(f"{name}.weight"), left.pop(f"{name}.bias")
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def _blocks(
    x: Tensor,
    left: dict[str, Tensor],
    name: str,
    num_layers: int,
    num_heads: int,
    quick: bool,
    *,
    causal: bool,
) -> Tensor:
    """open_clip's residual blocks on (B, L, W), with PyTorch's own multi-head attention."""
    length, width = x.shape[1:]
    mask = torch.full((length, length), -torch.inf).triu(1) if causal else None
    for number in range(num_layers):
        block = f"{name}.resblocks.{number}"
        attention = torch.nn.MultiheadAttention(width, num_heads, batch_first=True)
        kept = {key: left.pop(f"{block}.attn.{key}") for key in attention.state_dict()}
        attention.load_state_dict(kept)
        y = _norm(x, left, f"{block}.ln_1")
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = _norm(x, left, f"{block}.ln_2")
        y = F.linear(y, left.pop(f"{block}.mlp.c_fc.weight"), left.pop(f"{block}.mlp.c_fc.bias"))
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        down = left.pop(f"{block}.mlp.c_proj.weight"), left.pop(f"{block}.mlp.c_proj.bias")
        x = x + F.linear(y, *down)
    return x

"""A folder for transformers: CLIPModel, CLIPImageProcessor and CLIPTokenizer.

CLIPModel.from_pretrained(PATH); CLIPProcessor.from_pretrained(PATH)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ModelConfig, Stem
from pipeline.export.card import on_opening, on_sizes, on_texts, python, write_card
from pipeline.export.folder import ExportError, Features, Probe, write_json, write_weights
from pipeline.export.odd_pictures import SizeComparison, compare_sizes
from pipeline.export.odd_texts import TextComparison, compare_texts, up_to_end
from pipeline.export.tokenizer_files import write_tokenizer_files
from pipeline.export.tokenizer_json import write_tokenizer_json
from pipeline.model.text import EOT_TOKEN

WEIGHTS = "model.safetensors"
CAPTIONS = (
    "a photo of a cat",
    "It's 3,000 DOGS' day -- 10:30!",
    "ein Straßencafé, наука, 日本語",
    "smile 😀 and \U0001f469\u200d\U0001f680",
    "a caption that is much longer than the context " * 8,
)
"""Texts that every cleaning leaves alike: another reading of one is a fault, not a difference."""
_LOADING = """\
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(
    text=["a photo of a cat"], images=[open_picture("cat.jpg")], return_tensors="pt",
    padding=True, truncation=True,
)
similarity = model(**inputs).logits_per_image"""
_TEXT_NOTE = """\
Load the tokenizer by `AutoTokenizer` (`AutoProcessor` and `CLIPProcessor` do): tokenizer.json has
the cleaning that the model was trained with, but for repairing mojibake and for rare HTML entities.
The class `CLIPTokenizer` of transformers 5 puts its own cleaning in its place, which keeps
typographic quotes, entities, ligatures and full-width letters as they are."""
_SIZE_NOTE = """\
The short side becomes the model's size, then the middle is cut out. Where the long side less the
model's size leaves 3 when it is divided by 4, transformers cuts one pixel nearer to the start than
torchvision, open_clip and the training's evaluation: it rounds the margin down, they to the even
number."""
_BLOCK = {
    "ln_1": "layer_norm1",
    "attention.out": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def write(weights: dict[str, Tensor], config: ModelConfig, folder: Path, probe: Probe) -> str:
    if config.vision.stem is not Stem.patch:
        raise ExportError(
            f"model.vision.stem={config.vision.stem.value}: CLIPModel has no convolutional stem; "
            "export format=native, or train with model.vision.stem=patch"
        )
    if "logit_bias" in weights:
        raise ExportError(
            "loss.kind=sigmoid: CLIPModel has no logit_bias, and these weights have one; "
            "export format=open_clip or format=native"
        )
    try:
        import transformers
    except ImportError as error:
        raise ExportError(
            "format=huggingface is checked with transformers, which is not installed: "
            "pip install 'clip-pretrain[export]'"
        ) from error
    write_weights(folder / WEIGHTS, convert(weights, config))
    write_json(folder / "config.json", clip_config(config))
    write_json(folder / "preprocessor_config.json", processor_config(config))
    write_tokenizer_files(folder, config.text.context_length)
    write_tokenizer_json(folder)
    reader = f"transformers {transformers.__version__}"
    checked = probe.check(_read_features(folder, probe), reader)
    _check_processor(folder, probe)
    texts = [_compare_texts(name, folder, probe) for name in ("AutoTokenizer", "CLIPTokenizer")]
    sizes = _compare_sizes(folder, probe)
    report = "; ".join(
        [f"Hugging Face folder, {checked}", *(text.sentence() for text in texts), sizes.sentence()]
    )
    sections = {
        "Load it": python(_LOADING),
        "Pictures": on_opening(),
        "Sizes of pictures": f"{_SIZE_NOTE}\n\n{on_sizes(sizes)}",
        "Texts": f"{_TEXT_NOTE}\n\n{on_texts(texts)}",
    }
    write_card(folder, config, library="transformers", checked=report, sections=sections)
    return f"{report}; README.md there has the tables"


def convert(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """By the names of transformers' CLIPModel ("pre_layrnorm" is theirs)."""
    patch, width = config.vision.patch_size, config.vision.width
    stem = weights["visual.stem.projection.weight"].view(width, 3, patch, patch)
    embeddings = "vision_model.embeddings"
    converted = {
        f"{embeddings}.class_embedding": weights["visual.class_embedding"],
        f"{embeddings}.patch_embedding.weight": stem,
        f"{embeddings}.position_embedding.weight": weights["visual.positional_embedding"],
        "visual_projection.weight": weights["visual.projection.weight"],
        "text_model.embeddings.token_embedding.weight": weights["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["text.positional_embedding"],
        "text_projection.weight": weights["text.projection.weight"],
        "logit_scale": weights["logit_scale"].reshape(()),
    }
    for ours, theirs in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("text.ln_final", "text_model.final_layer_norm"),
    ):
        converted |= _pair(weights, ours, theirs)
    for tower, model, num_layers in (
        ("visual", "vision_model", config.vision.num_layers),
        ("text", "text_model", config.text.num_layers),
    ):
        for number in range(num_layers):
            block = f"{tower}.transformer.blocks.{number}"
            layer = f"{model}.encoder.layers.{number}"
            for ours, theirs in _BLOCK.items():
                converted |= _pair(weights, f"{block}.{ours}", f"{layer}.{theirs}")
            for kind in ("weight", "bias"):
                parts = weights[f"{block}.attention.qkv.{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    converted[f"{layer}.self_attn.{name}_proj.{kind}"] = part
    return converted


def _pair(weights: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for kind in ("weight", "bias")}


def clip_config(config: ModelConfig) -> dict[str, Any]:
    """Every field: transformers' defaults are ViT-B/32's sizes with QuickGELU."""
    shared = {
        # A mismatch here loads without a word and costs points.
        "hidden_act": "quick_gelu" if config.quick_gelu else "gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "projection_dim": config.embed_dim,
    }
    vision, text = config.vision, config.text
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "projection_dim": config.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": EOT_TOKEN - 1,
            # 2, as in old files of the Hub, would pool at the largest id instead.
            "eos_token_id": EOT_TOKEN,
            "pad_token_id": EOT_TOKEN,
        }
        | shared,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "image_size": config.image_size,
            "patch_size": vision.patch_size,
        }
        | shared,
    }


def processor_config(config: ModelConfig) -> dict[str, Any]:
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def _read_features(folder: Path, probe: Probe) -> Features:
    from transformers import CLIPImageProcessor, CLIPModel

    loaded: Any = CLIPModel.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ExportError(f"CLIPModel reports {problem}: {sorted(map(str, report[problem]))}")
    processor = CLIPImageProcessor.from_pretrained(folder)
    pixels = probe.normalised_pixels(processor.image_mean, processor.image_std)
    output = model.eval()(input_ids=probe.tokens, pixel_values=pixels)
    return Features(
        F.normalize(output.image_embeds, dim=1),
        F.normalize(output.text_embeds, dim=1),
        model.logit_scale.exp().item(),
    )


def _compare_texts(name: str, folder: Path, probe: Probe) -> TextComparison:
    """Compare the tokenizer class `name` of transformers with ours. ExportError where it reads even
    a plain text otherwise."""
    import transformers

    tokenizer = getattr(transformers, name).from_pretrained(folder)

    def read(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, truncation=True)["input_ids"]

    found, expected = read(list(CAPTIONS)), probe.tokenizer(list(CAPTIONS)).tolist()
    for caption, theirs, ours in zip(CAPTIONS, found, expected, strict=True):
        if list(theirs) != up_to_end(ours):
            raise ExportError(f"{name} reads {caption!r} as {theirs}, this project as {ours}")
    return compare_texts(name, read, probe)


def _compare_sizes(folder: Path, probe: Probe) -> SizeComparison:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (processor.image_mean, processor.image_std)
    )

    def levels(picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(processor(picture)["pixel_values"])[0])
        return (pixels * std + mean) * 255

    return compare_sizes("CLIPImageProcessor", levels, probe)


def _check_processor(folder: Path, probe: Probe) -> None:
    """On images of the model's own size, where no resize blurs a difference."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in probe.images]
    found = torch.from_numpy(np.stack(processor(pictures)["pixel_values"]))
    expected = probe.normalised_pixels(processor.image_mean, processor.image_std)
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-4):
        raise ExportError("CLIPImageProcessor gives other pixels than this project's image tower")

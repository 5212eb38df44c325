"""Rules for sizes that must fit together, and for the statistics of pixels."""

from __future__ import annotations

import math

from pipeline.config.choices import Stem
from pipeline.config.schema import ModelConfig
from pipeline.config.validation.numbers import either, nearest_divisors, nearest_multiples

CONV_STEM_STRIDE = 8
CONV_STEM_MULTIPLE = 4
"""It starts with a quarter of its channels."""

MOST_PARAMETERS = 100_000_000_000
"""No CLIP model comes near; what is above is a typing error that ends in failed allocations."""
SMALLEST_STD = 0.001


def validate_model(model: ModelConfig) -> list[str]:
    return [
        *_statistics(model),
        *_heads(model),
        *_patches(model),
        *_conv_stem(model),
        *_size(model),
    ]


def _statistics(model: ModelConfig) -> list[str]:
    """Mean and deviation per channel: three values each, of pixels scaled to 0..1."""
    problems = []
    limits = {"image_mean": (0.0, "0"), "image_std": (SMALLEST_STD, str(SMALLEST_STD))}
    for name, (low, shown) in limits.items():
        values: list[float] = getattr(model, name)
        if len(values) == 3 and all(low <= value <= 1 for value in values):
            continue
        advice = f"give three values (red, green, blue) from {shown} to 1"
        if len(values) == 3 and all(1 < value <= 255 for value in values):
            scaled = ",".join(f"{value / 255:.4g}" for value in values)
            advice += f"; of pixels from 0 to 255 these are model.{name}=[{scaled}]"
        problems.append(f"model.{name} = {values}: {advice}")
    return problems


def _heads(model: ModelConfig) -> list[str]:
    problems = []
    for name, tower in (("vision", model.vision), ("text", model.text)):
        width, heads = tower.width, tower.num_heads
        if heads > 0 and width > 0 and width % heads:
            of_stem = name == "vision" and model.vision.stem is Stem.conv
            step = math.lcm(heads, CONV_STEM_MULTIPLE if of_stem else 1)
            problems.append(
                f"model.{name}.width = {width}: is not divisible by model.{name}.num_heads = "
                f"{heads}; give num_heads {either(nearest_divisors(width, heads))}, or width "
                f"{either(nearest_multiples(width, step))}"
            )
    return problems


def _patches(model: ModelConfig) -> list[str]:
    vision, problems = model.vision, []
    if vision.patch_size < 1 or model.image_size < 1:
        return []  # out of bounds
    if model.image_size % vision.patch_size:
        is_conv = vision.stem is Stem.conv
        sizes = nearest_multiples(
            model.image_size, CONV_STEM_STRIDE if is_conv else vision.patch_size
        )
        patches = either(nearest_divisors(model.image_size, vision.patch_size))
        problems.append(
            f"model.image_size = {model.image_size}: is not divisible by model.vision.patch_size = "
            f"{vision.patch_size}; give image_size {either(sizes)}"
            + ("" if is_conv else f", or patch_size {patches}")
        )
    num_patches = (model.image_size // vision.patch_size) ** 2
    kept = num_patches * (1 - vision.patch_dropout)
    if 0 <= vision.patch_dropout < 1 <= num_patches and round(kept) < 1:
        problems.append(
            f"model.vision.patch_dropout = {vision.patch_dropout}: leaves {kept:.2g} of the "
            f"{num_patches} patches of an image; give at most {1 - 1 / num_patches:.4g}"
        )
    return problems


def _conv_stem(model: ModelConfig) -> list[str]:
    vision, problems = model.vision, []
    if vision.stem is not Stem.conv:
        return []
    if vision.patch_size != CONV_STEM_STRIDE:
        problems.append(
            f"model.vision.patch_size = {vision.patch_size}: the conv stem has stride 8; give 8 or "
            f"stem=patch"
        )
    divisible_by_heads = vision.num_heads > 0 and vision.width % vision.num_heads == 0
    if divisible_by_heads and vision.width % CONV_STEM_MULTIPLE:
        step = math.lcm(CONV_STEM_MULTIPLE, vision.num_heads)
        problems.append(
            f"model.vision.width = {vision.width}: the conv stem starts with a quarter of its "
            f"channels; give {either(nearest_multiples(vision.width, step))}, or stem=patch"
        )
    return problems


def _size(model: ModelConfig) -> list[str]:
    sizes = (model.image_size, model.vision.patch_size, model.embed_dim)
    if min(sizes) < 1:
        return []  # out of bounds
    vision, text = model.vision, model.text
    patches = (model.image_size // vision.patch_size) ** 2
    parts = {
        "model.vision": vision.width * (3 * vision.patch_size**2 + patches)
        + 12 * vision.num_layers * vision.width**2,
        "model.text": text.width * text.vocab_size + 12 * text.num_layers * text.width**2,
        "model.embed_dim": model.embed_dim * (vision.width + text.width),
    }
    largest = max(parts, key=lambda name: parts[name])
    if sum(parts.values()) <= MOST_PARAMETERS:
        return []
    return [
        f"{largest}: the model would have {sum(parts.values()):.2g} parameters, of which "
        f"{parts[largest]:.2g} here; give sizes with at most {MOST_PARAMETERS:.0e} in all (ViT-B "
        f"has 1.5e8)"
    ]

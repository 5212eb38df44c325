"""Rules for sizes that must fit together."""

from __future__ import annotations

from pipeline.config.choices import Stem
from pipeline.config.schema import ModelConfig


def validate_model(model: ModelConfig) -> list[str]:
    problems = []
    for name, tower in (("vision", model.vision), ("text", model.text)):
        if tower.num_heads > 0 and tower.width % tower.num_heads:
            problems.append(
                f"model.{name}.width = {tower.width}: is not divisible by model.{name}.num_heads "
                f"= {tower.num_heads}"
            )
    problems += _patches(model)
    return problems


def _patches(model: ModelConfig) -> list[str]:
    vision, problems = model.vision, []
    if vision.patch_size < 1 or model.image_size < 1:
        return []  # out of bounds
    if model.image_size % vision.patch_size:
        problems.append(
            f"model.image_size = {model.image_size}: is not divisible by model.vision.patch_size = "
            f"{vision.patch_size}"
        )
    if vision.stem is Stem.conv and vision.patch_size != 8:
        problems.append(
            f"model.vision.patch_size = {vision.patch_size}: the conv stem has stride 8; give 8 or "
            f"stem=patch"
        )
    num_patches = (model.image_size // vision.patch_size) ** 2
    kept = num_patches * (1 - vision.patch_dropout)
    if 0 <= vision.patch_dropout < 1 <= num_patches and round(kept) < 1:
        problems.append(
            f"model.vision.patch_dropout = {vision.patch_dropout}: leaves {kept:.2g} of the "
            f"{num_patches} patches of an image; give at most {1 - 1 / num_patches:.4g}"
        )
    return problems

"""What the formats share: the folder that appears whole or not at all, and the probe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from data_tools.ground.aside import remove_leftovers, written_aside
from pipeline.config import ModelConfig
from pipeline.model import CLIP, clip_of_weights
from pipeline.model.text import EOT_TOKEN

TOLERANCE = 1e-5
"""Largest difference allowed per element of a unit feature vector. Correct float32 readers differ
by 1e-7 to 1e-6; a wrong activation (GELU for QuickGELU) by 1e-3."""


class ExportError(ValueError):
    """Nothing was exported; the message says what stands in the way and what to do."""


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; it becomes `out` if the block succeeds and is removed if
    not. What a killed export to `out` left is removed. Raises ExportError if `out` exists."""
    if out.exists():
        raise ExportError(f"out={out} exists: name a new folder, or remove it first")
    remove_leftovers(out)  # gigabytes of weights
    with written_aside(out) as aside:
        aside.mkdir()
        yield aside


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a safetensors file. Older transformers refuse one without this metadata."""
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    path.touch()
    mode = path.stat().st_mode & 0o777  # what the umask allows
    save_file(whole, str(path), metadata={"format": "pt"})
    path.chmod(mode)  # safetensors leaves 0600, which nobody else could read


def load_model(weights: dict[str, Tensor], config: ModelConfig, max_logit_scale: float) -> CLIP:
    """This project's towers with the given weights; ExportError if names or shapes are others."""
    try:
        return clip_of_weights(weights, config, max_logit_scale)
    except ValueError as error:
        raise ExportError(str(error)) from error


@dataclass(frozen=True)
class Features:
    """Unit vectors (B, D), and the logit scale's factor."""

    image: Tensor
    text: Tensor
    scale: float


@dataclass(frozen=True)
class Probe:
    """Random images and captions, and what this project's towers make of them."""

    images: Tensor
    """uint8 (B, 3, S, S)."""
    tokens: Tensor
    """int64 (B, context_length): lengths odd and even, shortest and longest; zeros after. A context
    has room for the start, the end and one token."""
    expected: Features

    @classmethod
    def of(cls, model: CLIP, config: ModelConfig) -> Probe:
        generator = torch.Generator().manual_seed(0)
        longest, size = config.text.context_length, config.image_size
        lengths = sorted(
            {length for length in (3, 4, 9, longest - 1, longest) if 3 <= length <= longest}
        )
        images = torch.randint(
            256, (len(lengths), 3, size, size), dtype=torch.uint8, generator=generator
        )
        tokens = torch.zeros(len(lengths), longest, dtype=torch.int64)
        for row, length in enumerate(lengths):
            tokens[row, :length] = torch.randint(1, EOT_TOKEN - 1, (length,), generator=generator)
            tokens[row, 0], tokens[row, length - 1] = EOT_TOKEN - 1, EOT_TOKEN
        with torch.no_grad():
            output = model(images, tokens)
        expected = Features(
            F.normalize(output.image_features, dim=1),
            F.normalize(output.text_features, dim=1),
            output.logit_scale.exp().item(),
        )
        return cls(images, tokens, expected)

    def normalised_pixels(self, mean: list[float], std: list[float]) -> Tensor:
        """float32 (B, 3, S, S): what a reader that normalises outside its model is fed."""
        shift = torch.tensor(mean, dtype=torch.float64)[:, None, None]
        spread = torch.tensor(std, dtype=torch.float64)[:, None, None]
        return ((self.images.double() / 255 - shift) / spread).float()

    def check(self, found: Features, reader: str) -> str:
        """A sentence about the largest difference; ExportError when it is above TOLERANCE."""
        differences = {
            "image features": (found.image - self.expected.image).abs().max().item(),
            "text features": (found.text - self.expected.text).abs().max().item(),
            "logit scale": abs(found.scale / self.expected.scale - 1),
        }
        for name, difference in differences.items():
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"read back by {reader}, {name} differ by {difference:.2g} from this project's "
                    f"(allowed: {TOLERANCE:g}): nothing was exported"
                )
        return f"features read back by {reader} differ by at most {max(differences.values()):.1e}"

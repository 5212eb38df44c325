"""What the formats share: the folder that appears whole or not at all, and the probe."""

from __future__ import annotations

import json
import math
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
from pipeline.data import Tokenizer
from pipeline.model import CLIP, clip_of_weights
from pipeline.model.text import EOT_TOKEN

TOLERANCE = 1e-5
"""Largest difference allowed per element of a unit feature vector. Correct float32 readers differ
by 1e-7 to 1e-6; a wrong activation (GELU for QuickGELU) by 1e-3."""


SHORTEST_TEXT = 3
"""Tokens: start, one, end."""


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


def refuse_odd(config: ModelConfig) -> None:
    """ExportError with every value of an old run's model that trains, but that no reader knows."""
    problems = []
    for name in ("image_mean", "image_std"):
        values = list(getattr(config, name))
        if len(values) == 1:
            problems.append(
                f"model.{name}={values}: readers want three values, one per channel; write "
                f"{values * 3}, which this run trained with, into its config.yaml"
            )
        elif len(values) != 3 or not all(map(math.isfinite, values)):
            problems.append(f"model.{name}={values}: readers want three numbers, one per channel")
        elif name == "image_std" and min(values) <= 0:
            problems.append(
                f"model.{name}={values}: pixels are divided by it, so it must be above 0"
            )
    if not SHORTEST_TEXT <= config.text.context_length:
        problems.append(
            f"model.text.context_length={config.text.context_length}: start, one token and end "
            f"need {SHORTEST_TEXT}"
        )
    if problems:
        raise ExportError("nothing was exported:\n  " + "\n  ".join(problems))


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

    model: CLIP
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
        wanted = {SHORTEST_TEXT, 4, 9, longest - 1, longest}
        lengths = sorted(length for length in wanted if SHORTEST_TEXT <= length <= longest)
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
        return cls(model, images, tokens, expected)

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokens.shape[1])

    def image_features(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> unit vectors (B, D) by this project's tower."""
        return F.normalize(self.model.encode_image(images), dim=1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """int64 (B, context_length) -> unit vectors (B, D) by this project's tower."""
        return F.normalize(self.model.encode_text(tokens), dim=1)

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

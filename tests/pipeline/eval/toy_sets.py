"""Evaluation sets whose features are known: image i is a row of a table, and so is text "i"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class ToySet:
    name: str
    kind: str
    num_samples: int
    targets: Any
    """Labels list[int], or captions list[list[str]], by sample."""
    classnames: Sequence[str] = ()
    templates: Sequence[str] = ("{c}",)
    rank: int = 0
    world_size: int = 1
    skipped: set[int] = field(default_factory=set)
    broken: int | None = None

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        mine = [
            i for i in range(self.rank, self.num_samples, self.world_size) if i not in self.skipped
        ]
        for start in range(0, len(mine), batch_size):
            indices = mine[start : start + batch_size]
            if self.broken in indices:
                raise OSError(f"image {self.broken} cannot be decoded")
            targets = [self.targets[i] for i in indices]
            yield (
                torch.stack([picture(i) for i in indices]),
                torch.tensor(targets) if self.kind == "classification" else targets,
                torch.tensor(indices),
            )


def picture(index: int) -> Tensor:
    """uint8 (3, 8, 8) whose first two bytes are the index."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0, 0, 0], image[0, 0, 1] = index // 256, index % 256
    return image


@dataclass
class Tables:
    """Encoders that look features up, and count what they were asked."""

    images: Tensor
    texts: Tensor
    num_images: int = 0

    def encode_image(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        numbers = images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()
        return self.images[numbers]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.texts[tokens[:, 1]]


def tokenize(texts: list[str]) -> Tensor:
    """Text "12" or "something 12" -> start, 12, end, then zeros; no number is row 0."""
    tokens = torch.zeros(len(texts), 9, dtype=torch.int64)
    for row, text in enumerate(texts):
        words = [word for word in text.split() if word.isdecimal()]
        tokens[row, :3] = torch.tensor([49406, int(words[-1]) if words else 0, 49407])
    return tokens


def random_table(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))

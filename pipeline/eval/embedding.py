"""Images and texts to unit vectors in float32, whatever precision the towers run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.eval.protocols import Encoder, EvalError, Tokenizer


@dataclass(frozen=True)
class Embedder:
    """The two encoders of a model, as functions from images and texts to unit vectors."""

    encode_image: Encoder
    encode_text: Encoder
    tokenizer: Tokenizer
    device: torch.device
    batch_size: int
    """Images (or texts) per forward pass, per rank."""

    def images(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> (B, D) float32."""
        return _unit(self.encode_image(images.to(self.device, non_blocking=True)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> (n, D) float32. Texts of similar length share a batch, which is cut to its
        longest.

        An empty list gives (0, D), so that a rank without a share can take part in a reduction.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        sorted_texts = [texts[i] for i in order] or [""]
        parts = []
        for start in range(0, len(sorted_texts), self.batch_size):
            tokens = self.tokenizer(sorted_texts[start : start + self.batch_size])
            length = int(tokens.any(dim=0).nonzero().max()) + 1  # id 0 is a word too: "!"
            parts.append(_unit(self.encode_text(tokens[:, :length].to(self.device))))
        sorted_features = torch.cat(parts)
        features = torch.empty_like(sorted_features[: len(texts)])
        features[torch.tensor(order, dtype=torch.int64)] = sorted_features[: len(texts)]
        return features


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    if not bool(features.isfinite().all()):  # nothing is above nan: every answer would be right
        raise EvalError(
            "the model gives features that are not finite: score an earlier step, and see what "
            "metrics.jsonl tells of the loss"
        )
    return F.normalize(features, dim=1)


@contextmanager
def float32_scores(device: torch.device) -> Iterator[None]:
    """Matrix products of features in true float32: neither autocast nor TF32.

    bf16 resolves a logit between 16 and 32 to 0.125 only: equal maxima then decide what is right.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

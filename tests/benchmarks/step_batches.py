"""Batches for bench_step and bench_host: random pixels, and captions as long as alt text is.

They pass through the loader's own last stage, so that a batch is cut as in training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.data.batches.batch import Batch, BatchWork
from pipeline.data.batches.slots import BatchArrays
from pipeline.model.text import EOT_TOKEN

START_TOKEN = EOT_TOKEN - 1
FULL = "full"
# Mean and standard deviation of tokens a caption: table 1 of arXiv 2102.08981. Drawn log-normal.
CAPTIONS = {"cc12m": (20.2, 16.3), "cc3m": (10.3, 4.5)}


def caption_lengths(kind: str, count: int, context_length: int, seed: int) -> np.ndarray:
    """Tokens of each caption, start and end included, at most context_length; `full`: all that."""
    if kind == FULL:
        return np.full(count, context_length)
    mean, deviation = CAPTIONS[kind]
    variance = math.log(1 + (deviation / mean) ** 2)
    words = np.random.default_rng(seed).lognormal(
        math.log(mean) - variance / 2, math.sqrt(variance), count
    )
    return np.clip(np.rint(words).astype(np.int64) + 2, 3, context_length)


def make_batch(config: ModelConfig, count: int, captions: str, seed: int) -> Batch:
    """`count` pairs, page-locked if CUDA is there."""
    generator = np.random.default_rng(seed)
    shape = (count, 3, config.image_size, config.image_size)
    images = torch.from_numpy(generator.integers(256, size=shape, dtype=np.uint8))
    if torch.cuda.is_available():
        images = images.pin_memory()
    context_length = config.text.context_length
    lengths = caption_lengths(captions, count, context_length, seed)
    tokens = generator.integers(1, START_TOKEN, (count, context_length), dtype=np.uint16)
    tokens[:, 0] = START_TOKEN
    tokens[np.arange(count), lengths - 1] = EOT_TOKEN
    tokens[np.arange(context_length) >= lengths[:, None]] = 0
    work = BatchWork(
        0, images, BatchArrays(images.numpy(), tokens, np.arange(count, dtype=np.uint64))
    )
    return work.take()


def as_floats(batch: Batch, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The same for a trainer whose loader normalises: float32 images, tokens padded to
    context_length."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.image_mean, config.image_std))
    images = (batch.images.float() / 255 - mean) / std
    padding = config.text.context_length - batch.tokens.shape[1]
    tokens = torch.nn.functional.pad(batch.tokens, (0, padding))
    if torch.cuda.is_available():
        images, tokens = images.pin_memory(), tokens.pin_memory()
    return images, tokens


def mean_length(batch: Batch) -> float:
    """Tokens a caption that carry something, start and end included."""
    return float((batch.tokens == EOT_TOKEN).int().argmax(dim=1).float().mean()) + 1

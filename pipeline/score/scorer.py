"""A model to score with: a run of this project, its native export, or a Hugging Face CLIP
folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError, ModelConfig
from pipeline.config.frozen import load_frozen, load_model_config
from pipeline.data import Tokenizer
from pipeline.engine.checkpoint import CheckpointError, load_model_weights
from pipeline.model import clip_of_weights

Encoder = Callable[[Tensor], Tensor]
NATIVE_CONFIG, WEIGHTS, RUN_CONFIG, HUGGINGFACE_CONFIG = (
    "model_config.json",
    "model.safetensors",
    "config.yaml",
    "config.json",
)


class ScoreError(ValueError):
    """The pairs cannot be scored; the message says what stands in the way and what to do."""


@dataclass(frozen=True)
class Scorer:
    """Scores pairs on one device."""

    name: str
    """Name of the model in messages and metadata: the folder's name and a digest of the weights."""
    image_size: int
    tokenizer: Tokenizer
    encode_image: Encoder
    """uint8 (B, 3, image_size, image_size) -> (B, D)."""
    encode_text: Encoder
    """int64 (B, L) -> (B, D)."""
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor, captions: list[str]) -> Tensor:
        """float32 (B,) on the CPU: cosine of the features, computed in float32."""
        tokens = self.tokenizer(captions)
        image = F.normalize(self.encode_image(images.to(self.device)).float(), dim=1)
        text = F.normalize(self.encode_text(tokens.to(self.device)).float(), dim=1)
        return (image * text).sum(dim=1).cpu()


def load_scorer(folder: Path, device: torch.device) -> Scorer:
    """Load the model in `folder`; its files show which of the three kinds it is. Raises
    ScoreError."""
    if (folder / NATIVE_CONFIG).is_file():
        weights = load_file(str(folder / WEIGHTS))
        try:
            config = load_model_config(json.loads((folder / NATIVE_CONFIG).read_text()))
        except (ConfigError, ValueError) as error:
            raise ScoreError(f"model={folder}: {folder / NATIVE_CONFIG}: {error}") from error
        return _native_scorer(folder, weights, config, device)
    if (folder / RUN_CONFIG).is_file():
        return _run_scorer(folder, device)
    if (folder / HUGGINGFACE_CONFIG).is_file():
        return _huggingface_scorer(folder, device)
    raise ScoreError(
        f"model={folder}: neither a run (no {RUN_CONFIG}), nor a native export (no "
        f"{NATIVE_CONFIG}), nor a Hugging Face CLIP folder (no {HUGGINGFACE_CONFIG})"
    )


def _run_scorer(folder: Path, device: torch.device) -> Scorer:
    try:
        config = load_frozen(folder / RUN_CONFIG).model
        weights = load_model_weights(folder)
    except (ConfigError, CheckpointError) as error:
        raise ScoreError(f"model={folder}: {error}") from error
    return _native_scorer(folder, weights, config, device)


def _native_scorer(
    folder: Path, weights: dict[str, Tensor], config: ModelConfig, device: torch.device
) -> Scorer:
    highest = float(weights["logit_scale"].max().clamp(min=0)) if "logit_scale" in weights else 0.0
    try:
        model = clip_of_weights(weights, config, highest).to(device)
    except ValueError as error:
        raise ScoreError(f"model={folder}: {error}") from error
    return Scorer(
        f"{folder.name}@{digest(weights)}",
        config.image_size,
        Tokenizer(config.text.context_length),
        model.encode_image,
        model.encode_text,
        device,
    )


def _huggingface_scorer(folder: Path, device: torch.device) -> Scorer:
    """Any CLIPModel with CLIP's own vocabulary, such as a copy of openai/clip-vit-large-patch14."""
    try:
        from transformers import CLIPModel
    except ImportError as error:
        raise ScoreError(
            f"model={folder} is read with transformers: pip install 'clip-pretrain[export]'"
        ) from error
    model: Any
    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = (torch.tensor(processor[name]) for name in ("image_mean", "image_std"))
    except (OSError, KeyError, ValueError) as error:
        raise ScoreError(f"model={folder} is no CLIP folder of transformers: {error}") from error
    model = model.to(device).eval()
    mean, std = (value.to(device)[:, None, None] for value in (mean, std))

    def encode_image(images: Tensor) -> Tensor:
        return _features(model.get_image_features(pixel_values=(images / 255 - mean) / std))

    def encode_text(tokens: Tensor) -> Tensor:
        return _features(model.get_text_features(input_ids=tokens))

    sizes = model.config
    return Scorer(
        f"{folder.name}@{digest(dict(model.state_dict()))}",
        sizes.vision_config.image_size,
        Tokenizer(sizes.text_config.max_position_embeddings),
        encode_image,
        encode_text,
        device,
    )


def _features(output: object) -> Tensor:
    """transformers 5 wraps the features that 4 gives as a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore


def digest(weights: dict[str, Tensor]) -> str:
    """16 hex digits over names and values: scores of other weights do not compare."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]

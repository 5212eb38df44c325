"""This project's own format: model.safetensors with its parameter names, and model_config.json."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.export.card import python, write_card
from pipeline.export.folder import ExportError, Probe, write_json, write_weights

WEIGHTS, CONFIG = "model.safetensors", "model_config.json"
_LOADING = """\
from pathlib import Path

import torch

from pipeline.data.samples.transforms import eval_transform
from pipeline.score.scorer import load_scorer

scorer = load_scorer(Path(FOLDER), torch.device("cpu"))
pixels = eval_transform(Path("cat.jpg").read_bytes(), scorer.image_size)
cosines = scorer(torch.from_numpy(pixels)[None], ["a photo of a cat"])"""


def write(weights: dict[str, Tensor], config: ModelConfig, folder: Path, probe: Probe) -> str:
    """Compared bit by bit, so the probe is not needed."""
    write_weights(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, dataclasses.asdict(config, dict_factory=_plain))
    found = load_file(str(folder / WEIGHTS))
    for name, tensor in weights.items():
        if name not in found or not torch.equal(found[name], tensor):
            raise ExportError(
                f"{WEIGHTS} read back has another {name}: is the disk full or faulty?"
            )
    report = f"native weights, {len(found)} tensors read back bit by bit"
    sections = {
        "Load it": python(_LOADING),
        "Pictures and texts": "They are read by the code that read them in the training and its "
        "evaluation: pass files as bytes, texts as they are.",
    }
    write_card(folder, config, library="clip-pretrain", checked=report, sections=sections)
    return report


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in pairs}

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
from pipeline.export.folder import ExportError, Probe, write_json, write_weights

WEIGHTS, CONFIG = "model.safetensors", "model_config.json"


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
    return f"native weights, {len(found)} tensors read back bit by bit"


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in pairs}

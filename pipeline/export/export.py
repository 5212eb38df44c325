"""Exports weights in any of the formats, and checks what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.export import huggingface, native, open_clip
from pipeline.export.folder import Probe, load_model, refuse_odd, whole_folder

Writer = Callable[[dict[str, Tensor], ModelConfig, Path, Probe], str]
FORMATS: dict[str, Writer] = {
    "huggingface": huggingface.write,
    "open_clip": open_clip.write,
    "native": native.write,
}


def export_weights(
    weights: dict[str, Tensor],
    config: ModelConfig,
    out: Path,
    format: str,  # the user's word for it, on the command line too
    *,
    max_logit_scale: float,
) -> str:
    """Write `weights` (float32, by parameter name) as the new folder `out`; say what was checked.

    format: a key of FORMATS. The logit scale is written as the model uses it, clamped to
    [0, max_logit_scale]. Raises ExportError, and leaves no folder, when `out` exists, when the
    format cannot express the model, or when what is read back gives other features.
    """
    refuse_odd(config)
    model = load_model(weights, config, max_logit_scale)
    used = dict(weights)
    used["logit_scale"] = weights["logit_scale"].clamp(0.0, max_logit_scale)
    probe = Probe.of(model, config)
    with whole_folder(out) as folder, torch.no_grad():
        return FORMATS[format](used, config, folder, probe)

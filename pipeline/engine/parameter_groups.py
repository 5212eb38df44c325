"""Which parameter learns how fast, and which decays.

ZeRO makes one flat buffer of each group, with collectives of its own: there are as few groups as
there are pairs of (decayed or not, lr_scale), which is two for layer_decay = 1 and equal towers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pipeline.config import TrainConfig

IMAGE, TEXT = "visual.", "text."
_BLOCK = re.compile(r"\.blocks\.(\d+)\.")
# what a tower computes after its last block
_HEAD = ("ln_post.", "ln_final.", "projection.")


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """Groups of the parameters that require a gradient: {"params", "weight_decay", "lr_scale",
    "decayed", "name"}; the engine sets a group's lr to train.lr * lr_factor * lr_scale.

    Weight decay acts on matrices only. Gains, biases and the logit scale have none, and neither
    have embeddings: they are looked up or added, not multiplied, and decay would pull the rows of
    rare words to zero between their occurrences.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    scales = lr_scales((name for name, _ in model.named_parameters()), train)
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in named:
        groups.setdefault((is_decayed(name, parameter), scales[name]), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": train.weight_decay if decayed else 0.0,
            "lr_scale": scale,
            "decayed": decayed,
            "name": f"{'decayed' if decayed else 'not decayed'}, lr x {scale:.6g}",
        }
        # an order that does not depend on that of the modules
        for (decayed, scale), parameters in sorted(groups.items(), key=lambda item: item[0])[::-1]
    ]


def is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and "embedding" not in name


def lr_scales(names: Iterable[str], train: TrainConfig) -> dict[str, float]:
    """Factor on train.lr of each parameter: its tower's, times layer_decay once for each block
    between it and the output.

    Counted as in BEiT (arXiv 2106.08254) and EVA-CLIP: what follows the last block 0, the last
    block 1, the first num_layers, and what precedes it (stem, embeddings, ln_pre) num_layers + 1.
    The logit scale has 1.0.
    """
    names = list(names)
    num_layers = {tower: _num_layers(names, tower) for tower in (IMAGE, TEXT)}
    tower_scale = {IMAGE: train.image_lr_scale, TEXT: train.text_lr_scale}
    scales = {}
    for name in names:
        tower = next((tower for tower in tower_scale if name.startswith(tower)), None)
        if tower is None:
            scales[name] = 1.0
        else:
            distance = _distance(name.removeprefix(tower), num_layers[tower])
            scales[name] = tower_scale[tower] * train.layer_decay**distance
    return scales


def freeze_towers(model: nn.Module, train: TrainConfig) -> None:
    """A tower whose lr scale is 0 takes no gradient: neither its backward nor its optimizer state
    is paid for, no decay moves it, and ZeRO leaves it out of its buffers."""
    for tower, scale in ((IMAGE, train.image_lr_scale), (TEXT, train.text_lr_scale)):
        if scale == 0:
            for name, parameter in model.named_parameters():
                if name.startswith(tower):
                    parameter.requires_grad_(False)


def _num_layers(names: list[str], tower: str) -> int:
    blocks = (_BLOCK.search(name) for name in names if name.startswith(tower))
    return 1 + max((int(found.group(1)) for found in blocks if found), default=-1)


def _distance(name: str, num_layers: int) -> int:
    """How many blocks lie between a parameter and its tower's output; `name` is without the tower's
    prefix."""
    block = _BLOCK.search(name)
    if block:
        return num_layers - int(block.group(1))
    return 0 if name.startswith(_HEAD) else num_layers + 1

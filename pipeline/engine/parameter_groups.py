"""Decides how fast each parameter learns, and which have weight decay.

ZeRO makes one flat buffer per group, with collectives of its own. There is one group for each pair
(decayed or not, lr_scale), the fewest possible: two for layer_decay = 1 and equal towers.
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
    """Groups of the parameters that require a gradient, with the keys "params", "weight_decay",
    "lr_scale", "decayed" and "name". The engine sets a group's lr to
    train.lr * lr_factor * lr_scale.

    Only matrices have weight decay; gains, biases and the logit scale have none. Embeddings have
    none either: they are looked up or added, not multiplied, and decay would pull rows of rare
    words to zero between their occurrences.
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
    """Each parameter's factor on train.lr: tower scale * layer_decay ** distance from the output.

    Distances are counted as in BEiT (arXiv 2106.08254) and EVA-CLIP: 0 after the last block, 1 in
    the last block, num_layers in the first, and num_layers + 1 before it (stem, embeddings,
    ln_pre). The logit scale has the factor 1.0.
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
    """Freeze a tower whose lr scale is 0: it costs no backward and no optimizer state, weight decay
    does not move it, and ZeRO leaves it out of its buffers."""
    for tower, scale in ((IMAGE, train.image_lr_scale), (TEXT, train.text_lr_scale)):
        if scale == 0:
            for name, parameter in model.named_parameters():
                if name.startswith(tower):
                    parameter.requires_grad_(False)


def _num_layers(names: list[str], tower: str) -> int:
    blocks = (_BLOCK.search(name) for name in names if name.startswith(tower))
    return 1 + max((int(found.group(1)) for found in blocks if found), default=-1)


def _distance(name: str, num_layers: int) -> int:
    """Distance of a parameter from its tower's output, in blocks; `name` has no tower prefix."""
    block = _BLOCK.search(name)
    if block:
        return num_layers - int(block.group(1))
    return 0 if name.startswith(_HEAD) else num_layers + 1

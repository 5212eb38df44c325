"""Reads a rank's fragments from a checkpoint, whatever world size and ZeRO stage wrote it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.record import Parameter, Record, tensor_key, tensors_name
from pipeline.engine.shards import Fragment

WEIGHT, EMA = "weight", "ema"


class _Read(NamedTuple):
    """Copy elements start .. start + len(target) of the tensor `key` into `target`."""

    key: str
    start: int
    target: Tensor


def read_fragments(folder: Path, record: Record, fragments: Sequence[Fragment]) -> None:
    """Copy a checkpoint into the fragments' values. Only what overlaps them is read, through a
    memory map, one file after the other.

    If the checkpoint has no average of the weights, the average starts as the weights. Raises
    CheckpointError when other elements are missing.
    """
    for file, reads in _plan(record, fragments).items():
        with safe_open(str(folder / file), "pt") as content:
            for key, start, target in reads:
                target.copy_(content.get_slice(key)[start : start + target.numel()])


def _plan(record: Record, fragments: Sequence[Fragment]) -> dict[str, list[_Read]]:
    stored = defaultdict(list)
    for rank, pieces in enumerate(record.pieces):
        for piece in pieces:
            stored[piece.name].append((rank, piece))
    plan: dict[str, list[_Read]] = defaultdict(list)
    for fragment in fragments:
        kinds = record.parameters[fragment.name].kinds
        length, found = next(iter(fragment.values.values())).numel(), 0
        for rank, piece in stored[fragment.name]:
            first = max(piece.start, fragment.start)
            last = min(piece.start + piece.length, fragment.start + length)
            if first >= last:
                continue
            found += last - first
            for kind, values in fragment.values.items():
                source = WEIGHT if kind == EMA and EMA not in kinds else kind
                key = tensor_key(source, fragment.name, piece.start)
                target = values.detach().narrow(0, first - fragment.start, last - first)
                plan[tensors_name(rank)].append(_Read(key, first - piece.start, target))
        if found != length:
            raise CheckpointError(
                f"{fragment.name}: {found} of {length} elements from {fragment.start} on are there"
            )
    return dict(sorted(plan.items()))


def misfits(record: Record, wanted: Mapping[str, Parameter]) -> list[str]:
    """How the parameters of a model differ from those of a checkpoint."""
    stored, found = record.parameters, []
    found += [f"{name} is not in the checkpoint" for name in wanted if name not in stored]
    found += [f"{name} is not in the model" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        if wanted[name].shape != stored[name].shape:
            found.append(f"{name} is {stored[name].shape}, in the model {wanted[name].shape}")
        lacking = set(wanted[name].kinds) - set(stored[name].kinds) - {EMA}
        if lacking:
            found.append(f"{name} has no {', '.join(sorted(lacking))}: it was frozen")
    return sorted(found)


def read_whole(folder: Path, record: Record, kind: str) -> dict[str, Tensor]:
    """All parameters by name, whole and in their shapes, float32, on the CPU."""
    whole = [
        Fragment(name, shape, 0, {kind: torch.empty(math.prod(shape))})
        for name, (shape, _) in record.parameters.items()
    ]
    read_fragments(folder, record, whole)
    return {fragment.name: fragment.values[kind].view(fragment.shape) for fragment in whole}

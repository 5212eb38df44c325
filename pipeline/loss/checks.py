"""Validation of inputs, agreed on by all ranks before the first collective that depends on them.

A rank that raises alone leaves the others waiting in a collective until its timeout. So each rank
first writes down what it found, one small gather spreads the notes, and all raise the same
ValueError or none does.
"""

from __future__ import annotations

import json
import math
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.loss.block import accumulator_dtype
from pipeline.loss.collectives import Ranks, gather_rows

NOTE_BYTES = 4096  # holds MAX_ERRORS errors of ERROR_LENGTH characters and the facts
MAX_ERRORS = 4
ERROR_LENGTH = 400
LARGEST_LOG_SCALE = math.log(torch.finfo(torch.float32).max)  # 88.7
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class InputReport:
    """What one rank found: its errors, and the facts that must be equal on every rank."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.facts: dict[str, Any] = {}

    def require(self, condition: bool, message: str) -> bool:
        if not condition:
            self.errors.append(message)
        return condition

    def features(self, name: str, features: Any, *, finite: bool) -> InputReport:
        """(n, d), n and d at least one, of a float dtype; ``finite`` reads them (a device
        synchronisation)."""
        if not self.require(
            isinstance(features, Tensor), f"{name} is not a tensor but {type(features)}"
        ):
            return self
        self.require(
            features.dtype in FLOATS,
            f"{name} has dtype {features.dtype}; pass float16, bfloat16, float32 or float64",
        )
        shape = tuple(features.shape)
        good = self.require(
            len(shape) == 2 and min(shape) > 0,
            f"{name} has shape {shape}; pass (local batch size, dimension), neither zero",
        )
        if good:
            self.facts[f"rows of {name}"], self.facts[f"dimension of {name}"] = shape
        self.facts[f"dtype of {name}"] = str(features.dtype)
        self.facts[f"gradient of {name}"] = features.requires_grad
        if good and finite and features.dtype in FLOATS:
            self._finite(name, features.detach())
        return self

    def _finite(self, name: str, values: Tensor) -> None:
        # a finite sum has finite terms; isfinite makes two tensors of the features' size
        if bool(torch.isfinite(values.sum(dtype=accumulator_dtype(values.dtype)))):
            return
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        where = (~finite).nonzero()
        self.errors.append(
            f"{name} has {len(where)} non-finite values, the first {values[tuple(where[0])].item()}"
            f" at {where[0].tolist()}; look for an overflow in the tower or a broken input"
        )

    def batch(
        self, image_features: Any, text: Any, logit_scale: Any, pair_ids: Any, *, finite: bool
    ) -> InputReport:
        """What both losses take; ``text``, the text features, has been checked by itself."""
        self.features("image_features", image_features, finite=finite)
        self._same(image_features, text)
        self.scalar("logit_scale", logit_scale, finite=finite, limit=LARGEST_LOG_SCALE)
        return self._ids(pair_ids, image_features)

    def _same(self, image_features: Any, text_features: Any) -> None:
        if not (isinstance(image_features, Tensor) and isinstance(text_features, Tensor)):
            return
        for fact in ("shape", "dtype", "device"):
            image, text = getattr(image_features, fact), getattr(text_features, fact)
            self.require(
                image == text,
                f"image_features have {fact} {_plain(image)} and text_features {_plain(text)};"
                " they must be equal",
            )

    def scalar(
        self, name: str, value: Any, *, finite: bool, limit: float = math.inf
    ) -> InputReport:
        """A float parameter of one element, such as the logit scale; ``limit`` is that of a
        logarithm."""
        if not self.require(isinstance(value, Tensor), f"{name} is not a tensor but {type(value)}"):
            return self
        good = self.require(
            value.numel() == 1 and value.dtype in FLOATS,
            f"{name} has shape {tuple(value.shape)} and dtype {value.dtype};"
            " pass one float, of shape () or (1,)",
        )
        if good and finite:
            number = value.detach().item()
            self.require(math.isfinite(number), f"{name} is {number}; it must be finite")
            self.require(
                not limit < number < math.inf,
                f"{name} is {number}, whose exponential overflows; pass the logarithm of the scale",
            )
        return self

    def _ids(self, pair_ids: Any, image_features: Any) -> InputReport:
        self.facts["use of pair_ids"] = pair_ids is not None
        if pair_ids is None or not isinstance(image_features, Tensor):
            return self
        if not self.require(
            isinstance(pair_ids, Tensor), f"pair_ids is not a tensor but {type(pair_ids)}"
        ):
            return self
        self.require(
            pair_ids.dtype == torch.int64, f"pair_ids have dtype {pair_ids.dtype}; pass int64"
        )
        self.require(
            tuple(pair_ids.shape) == tuple(image_features.shape[:1]),
            f"pair_ids have shape {tuple(pair_ids.shape)}; pass one id for each of the"
            f" {tuple(image_features.shape[:1])} rows",
        )
        self.require(
            pair_ids.device == image_features.device,
            f"pair_ids are on {pair_ids.device}; move them to {image_features.device}",
        )
        return self

    def label_smoothing(self, value: Any) -> InputReport:
        number = _number(value)
        self.require(
            0.0 <= number < 1.0,
            f"label_smoothing is {value!r}; pass a number of at least 0 and below 1",
        )
        self.facts["label_smoothing"] = str(number)  # NaN, which is not itself, equals "nan"
        return self

    def options(
        self, tile: Any, stash_bytes: Any = 0, reduce_dtype: torch.dtype | None = None
    ) -> InputReport:
        sides = tile if isinstance(tile, tuple) else (tile, tile)
        self.require(
            tile is None or (len(sides) == 2 and all(isinstance(x, int) and x > 0 for x in sides)),
            f"tile is {tile!r}; pass a positive number of rows and columns, or None",
        )
        self.require(
            _number(stash_bytes) >= 0,
            f"stash_bytes is {stash_bytes!r}; pass a number of bytes, 0 or more",
        )
        self.require(
            reduce_dtype is None or reduce_dtype in FLOATS,
            f"reduce_dtype is {reduce_dtype}; pass a float dtype or None",
        )
        self.facts["reduce_dtype"] = str(reduce_dtype)
        return self

    def top1_out(self, top1_out: Tensor | None) -> InputReport:
        self.require(
            top1_out is None or top1_out.shape == (2,),
            "top1_out holds two numbers; pass a tensor of shape (2,)",
        )
        self.facts["top1_out"] = top1_out is not None
        return self


def _number(value: Any) -> float:
    """NaN, which no range holds, for what is no number."""
    return float(value) if isinstance(value, Real) else math.nan


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def agree(report: InputReport, ranks: Ranks, *, exchange: bool) -> None:
    """Raise one ValueError on every rank if any rank reports an error or the facts differ between
    ranks.

    Without ``exchange`` only this rank's own errors are raised, and nothing is communicated.
    """
    notes = [_note(report)] if ranks.size == 1 or not exchange else _gather_notes(report, ranks)
    errors = [
        f"rank {rank}: {error}" if ranks.size > 1 else error
        for rank, note in enumerate(notes)
        for error in note["errors"]
    ]
    if not errors:
        errors = _differences([note["facts"] for note in notes])
    if errors:
        raise ValueError("; ".join(errors))


def agree_on_upstream(upstream: Tensor, ranks: Ranks) -> None:
    """Raise on every rank if the gradient of the loss is not the same on all of them."""
    report = InputReport()
    report.facts["the upstream gradient of a ring loss"] = str(upstream.item())
    agree(report, ranks, exchange=True)


def _differences(facts: list[dict[str, Any]]) -> list[str]:
    errors = []
    for name in facts[0]:
        for rank, other in enumerate(facts):
            if other.get(name) != facts[0][name]:
                fix = "drop the last, smaller batch" if name.startswith("rows") else "pass the same"
                errors.append(
                    f"{name} differs between ranks: {facts[0][name]} on rank 0,"
                    f" {other.get(name)} on rank {rank}; {fix} on every rank"
                )
                break
    return errors


def _note(report: InputReport) -> dict[str, Any]:
    # a character of ASCII takes at most two bytes of JSON, whatever the value that an error names
    plain = [error.encode("ascii", "backslashreplace").decode() for error in report.errors]
    errors = [error[:ERROR_LENGTH] for error in plain[:MAX_ERRORS]]
    return {"errors": errors, "facts": report.facts}


def _gather_notes(report: InputReport, ranks: Ranks) -> list[dict[str, Any]]:
    on_cuda = dist.get_backend(ranks.group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    text = json.dumps(_note(report)).encode().ljust(NOTE_BYTES)
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    notes = gather_rows(mine, ranks).view(ranks.size, NOTE_BYTES).cpu()
    return [json.loads(bytes(note.tolist())) for note in notes]

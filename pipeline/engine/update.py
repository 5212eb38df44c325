"""Computes gradient norms, clips, and skips a step that is not finite, without waiting for the
device.

DeepSpeed 0.19.8 clips and skips on the host, which waits for the norm in each step. Here the norm
stays on the device and goes to torch's fused optimizers as `grad_scale` and `found_inf`, which were
made for a gradient scaler: gradients are divided by the first, and if the second is 1 nothing
changes, not even the step counter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.engine.shards import ParameterShards

TOWERS = ("visual.", "text.")


class Update:
    """The optimizer step after a backward."""

    def __init__(
        self, engine: Any, shards: ParameterShards, clip: float | None, *, on_host: bool
    ) -> None:
        self._engine, self._shards, self._clip = engine, shards, clip
        self._on_host = on_host
        self._optimizer = engine.optimizer.optimizer
        self._members: Tensor | None = None

    def apply(self) -> tuple[Tensor, Tensor]:
        """Update the weights or skip the step. Returns the gradient norms (3,), as in StepMetrics,
        and () 1.0 if the step was skipped, else 0.0."""
        if self._on_host:
            return self._by_deepspeed()
        norms = self._norms()
        total = norms[2]
        skipped = (~total.isfinite()).float()
        limit = math.inf if self._clip is None else self._clip  # inf: the scale is always 1
        self._optimizer.grad_scale = (total / limit).clamp(min=1.0)
        self._optimizer.found_inf = skipped
        self._engine.step()
        return norms, skipped

    def _by_deepspeed(self) -> tuple[Tensor, Tensor]:
        """Let DeepSpeed clip and skip (`decides_on_host`); the norms of the towers are then nan."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        device = self._engine.device
        total = torch.as_tensor(
            float("nan") if norm is None else norm, dtype=torch.float32, device=device
        )
        skipped = 0.0 if self._engine.was_step_applied() else 1.0
        if skipped:
            # stage 3 left the small parameters ungathered: the next forward would gather those of
            # autocast's modules in bf16, while after an applied step they are float32
            self._shards.publish()
        unknown = torch.full((2,), float("nan"), device=device)
        return torch.cat([unknown, total.reshape(1)]), torch.full((), skipped, device=device)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """Norms (3,) of image tower, text tower and all parameters over all ranks; one
        all-reduce."""
        names, gradients = zip(*self._shards.gradients() or [("", torch.zeros(0))])
        if self._members is None:  # the same pieces in each step
            self._members = torch.tensor(
                [[name.startswith(tower) for name in names] for tower in (*TOWERS, "")],
                dtype=torch.float32,
            ).to(self._engine.device)
        norms = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32))
        # where, not a product: a tower that is not finite must not make the other so
        squares = torch.where(self._members > 0, norms.square(), 0.0).sum(dim=1)
        dist.all_reduce(squares, group=self._engine.optimizer.dp_process_group)
        return squares.sqrt()

"""The ranks that share an evaluation. Every method is collective: all ranks call it, in one
order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.eval.protocols import EvalError


@dataclass(frozen=True)
class Ranks:
    """A process group and this rank's place in it; size 1 communicates nothing."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        """None: all ranks of the default group, or this process alone where there is none."""
        if group is None and not (dist.is_available() and dist.is_initialized()):
            return cls(None, 0, 1)
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def rows(self, rows: Tensor, indices: Tensor, total: int) -> Tensor:
        """Every rank's rows at their global indices: (n, ...), (n,) -> (total, ...) on every rank.

        A sum with zeros is exact, and the result does not depend on the number of ranks.
        """
        table = rows.new_zeros((total, *rows.shape[1:]))
        table[indices] = rows
        return self.sum(table)

    def union(self, mine: dict[int, Any]) -> dict[int, Any]:
        """All ranks' entries in one dictionary, by ascending key; for a few small objects."""
        told: list[dict[int, Any]] = [mine]
        if self.size > 1:
            told = [{}] * self.size
            dist.all_gather_object(told, mine, group=self.group)
        merged = {key: value for part in told for key, value in part.items()}
        return {key: merged[key] for key in sorted(merged)}

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """A block that may fail on some ranks: if it failed on one, every rank raises after it.

        Without it the others would wait in their next collective until its timeout.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # noqa: B902 - whatever it was, the other ranks must hear of it
            error = caught
        failed = self.union({} if error is None else {self.rank: str(error)})
        if error is not None:
            raise error
        for rank, message in failed.items():
            raise EvalError(f"{name}: rank {rank} failed: {message}")


def count_sum(ranks: Ranks, counts: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Named int64 counts of any shapes, summed over the ranks in one reduction; back on the CPU."""
    flat = torch.cat([value.reshape(-1).to(device, torch.int64) for value in counts.values()])
    parts = ranks.sum(flat).cpu().split([value.numel() for value in counts.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(counts.items(), parts, strict=True)
    }

"""The collectives of the loss. Only text features and two N-vectors travel forward, one (N, d)
gradient backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.loss.block import LineSums

# torch 2.13 renamed both and warns about the old names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Ranks:
    """A process group and this process's place in it; ``size`` 1 means that nothing is
    communicated."""

    group: dist.ProcessGroup | None
    rank: int
    size: int


def ranks_of(group: dist.ProcessGroup | None) -> Ranks:
    """``None`` is every rank where torch.distributed is initialised, and this process alone where
    it is not."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks(None, 0, 1)
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            "this process is not in the given process group; call the loss on its members only"
        )
    return Ranks(group, rank, dist.get_world_size(group))


def start_gather(rows: Tensor, ranks: Ranks) -> tuple[Tensor, dist.Work | None]:
    """Start gathering (n, ...) into (P n, ...) in rank order; the result is valid after the work is
    waited for."""
    if ranks.size == 1:
        return rows, None
    rows = rows.contiguous()
    gathered = rows.new_empty((ranks.size * len(rows), *rows.shape[1:]))
    work = _all_gather(gathered, rows, group=ranks.group, async_op=True)
    return gathered, work


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """(n, ...) of every rank as (P n, ...), in rank order."""
    gathered, work = start_gather(rows, ranks)
    if work is not None:
        work.wait()
    return gathered


def start_scatter(
    rows: Tensor, ranks: Ranks, dtype: torch.dtype | None
) -> tuple[Tensor, dist.Work | None]:
    """Start summing (P n, ...) over ranks, each keeping its own (n, ...).

    ``dtype`` is what travels, None for that of ``rows``. The result is valid once the work is
    waited for.
    """
    if ranks.size == 1:
        return rows, None
    rows = rows.to(dtype or rows.dtype)
    mine = rows.new_empty((len(rows) // ranks.size, *rows.shape[1:]))
    work = _reduce_scatter(mine, rows, group=ranks.group, async_op=True)
    return mine, work


def combine_lines(partial: LineSums, ranks: Ranks) -> LineSums:
    """Sums over the rows of all ranks: one MAX and one SUM of N accumulators."""
    if ranks.size == 1:
        return partial
    top = combine_max(partial.top, ranks)
    total = partial.total * torch.exp2(partial.top - top)
    dist.all_reduce(total, group=ranks.group)
    return LineSums(top, total)


def combine_max(partial: Tensor, ranks: Ranks) -> Tensor:
    """Elementwise maximum over ranks."""
    if ranks.size == 1:
        return partial
    largest = partial.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=ranks.group)
    return largest

"""What ranks tell each other about checkpoints, on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.distributed.world import PeerError, World
from pipeline.engine.checkpoint.errors import CheckpointError

T = TypeVar("T")


class Ranks:
    """Through a gloo group: agreeing costs no device synchronisation. Only one thread may use it,
    so that its collectives meet in the same order on all ranks."""

    def __init__(self, world: World, group: dist.ProcessGroup) -> None:
        self.world, self._group = world, group

    def of_rank_0(self, ask: Callable[[], T]) -> T:
        """Its answer, or the error that it met, on every rank."""
        told: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.world.is_main:
            try:
                told = [(ask(), None)]
            except Exception as error:  # noqa: B902 - whatever it was, the others must hear of it
                told = [(None, error)]
        original = told[0][1]
        dist.broadcast_object_list(told, group=self._group)
        answer, problem = told[0]
        if problem is not None:
            raise original or PeerError(f"rank 0: {problem}")
        return answer  # type: ignore[return-value]

    def to_rank_0(self, mine: T) -> list[T]:
        """What all ranks gave, in their order; empty on the others."""
        told: list[T | None] = [None] * self.world.world_size
        dist.gather_object(mine, told if self.world.is_main else None, group=self._group)
        return told if self.world.is_main else []  # type: ignore[return-value]

    def of_all(self, mine: T) -> list[T]:
        told: list[T | None] = [None] * self.world.world_size
        dist.all_gather_object(told, mine, group=self._group)
        return told  # type: ignore[return-value]

    def any(self, votes: list[bool]) -> list[bool]:
        """One all-reduce."""
        told = torch.tensor(votes, dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in told]

    def refusal(self, text: str) -> RuntimeError:
        """To raise where all ranks know what is wrong: rank 0 says it, once in a log of hundreds of
        ranks."""
        return CheckpointError(text) if self.world.is_main else PeerError(f"rank 0: {text}")

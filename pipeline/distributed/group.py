"""What the ranks of a process group tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank failed in a step that all take together; its message is repeated here, so that
    every rank says the same."""


@dataclass(frozen=True)
class Group:
    """A process group and this rank's place in it; a group of one communicates nothing.

    Every method is collective: all ranks call it, in the same order. A gloo group agrees on the
    host, which costs no synchronisation with the device; its collectives must all be called from
    one thread, so that they meet in the same order on all ranks.
    """

    group: dist.ProcessGroup | None
    """None is the default group."""
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Group:
        """None: all ranks of the default group, or this process alone where there is none."""
        if group is None and not (dist.is_available() and dist.is_initialized()):
            return cls(None, 0, 1)
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def any(self, votes: list[bool]) -> list[bool]:
        """For each vote, whether any rank gave it; one all-reduce."""
        counted = torch.tensor(votes, dtype=torch.uint8)
        if self.size > 1:
            dist.all_reduce(counted, dist.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in counted]

    def gather_rows(self, rows: Tensor, indices: Tensor, total: int) -> Tensor:
        """Every rank's rows at their global indices: (n, ...), (n,) -> (total, ...) on every rank.

        A sum with zeros is exact, and the result does not depend on the number of ranks.
        """
        table = rows.new_zeros((total, *rows.shape[1:]))
        table[indices] = rows
        return self.sum(table)

    def broadcast(self, ask: Callable[[], T]) -> T:
        """What `ask` returns on rank 0, or the error that it raises there, on every rank."""
        answers: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.is_main:
            try:
                answers = [(ask(), None)]
            except Exception as error:
                answers = [(None, error)]
        original = answers[0][1]
        if self.size > 1:
            dist.broadcast_object_list(answers, src=self._global(0), group=self.group)
        answer, problem = answers[0]
        if problem is not None:
            raise original or PeerError(f"rank 0: {problem}")
        return answer  # type: ignore[return-value]

    def copy_to_all(self, values: Tensor) -> None:
        """Rank 0's values on every rank, in place; `values` lies where the group communicates."""
        if self.size > 1:
            dist.broadcast(values, src=self._global(0), group=self.group)

    def gather(self, mine: T) -> list[T]:
        """What all ranks gave, in the order of ranks, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [mine]
        given: list[T | None] = [None] * self.size
        dist.gather_object(
            mine, given if self.is_main else None, dst=self._global(0), group=self.group
        )
        return given if self.is_main else []  # type: ignore[return-value]

    def all_gather(self, mine: T) -> list[T]:
        """What all ranks gave, in the order of ranks, on every rank; for small objects."""
        if self.size == 1:
            return [mine]
        given: list[T | None] = [None] * self.size
        dist.all_gather_object(given, mine, group=self.group)
        return given  # type: ignore[return-value]

    def merge(self, mine: dict[int, Any]) -> dict[int, Any]:
        """All ranks' entries in one dictionary, by ascending key."""
        merged = {key: value for part in self.all_gather(mine) for key, value in part.items()}
        return {key: merged[key] for key in sorted(merged)}

    @contextmanager
    def raise_on_all_ranks(self, doing: str) -> Iterator[None]:
        """Run a block that may fail on some ranks only. If it failed anywhere, every rank raises:
        its own error, or a PeerError with the message of the first rank that failed.

        Otherwise the other ranks would wait in their next collective until its timeout.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        messages = self.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = {rank: message for rank, message in enumerate(messages) if message is not None}
        if failed:
            first = min(failed)
            raise PeerError(f"could not {doing}: rank {first} of {self.size}: {failed[first]}")

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

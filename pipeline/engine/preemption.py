"""All ranks stop at the same step once any of them was asked to."""

from __future__ import annotations

from types import TracebackType

import torch
import torch.distributed as dist

from pipeline.distributed.world import World
from pipeline.signals import hold_stop_signals, release_stop_signals, stop_was_asked


class StopRequest:
    """Between entry and exit, SIGTERM, SIGUSR1 and SIGINT end no rank; `agreed` tells of them.

    Slurm and a preempting scheduler tell all ranks, but not within one step, and some tell one.
    Ranks vote in a group of their own, on the CPU: no step waits for the device because of it.
    Entering is a collective operation; main thread only.
    """

    def __init__(self, world: World) -> None:
        self._timeout = world.timeout
        self._vote = torch.zeros(1, dtype=torch.int32)
        self._outcome = self._vote.numpy()  # the same memory
        self._running: dist.Work | None = None

    def __enter__(self) -> StopRequest:
        self._found = hold_stop_signals()
        self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self

    def agreed(self) -> bool:
        """Called once after every step by every rank: the same answer to all of them.

        The vote that starts here is read one step later, when it has long arrived: a request takes
        one to two steps, and the step in between hides the round trip. Once True, no other vote is
        begun, and none may be asked for.
        """
        if self._running is not None:
            self._running.wait()
            self._running = None
            if self._outcome[0]:
                return True
        self._outcome[0] = stop_was_asked()
        self._running = dist.all_reduce(
            self._vote, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        release_stop_signals(self._found)
        if kind is not None:
            return  # the peers may be gone
        if self._running is not None:
            self._running.wait()
        dist.destroy_process_group(self._group)

"""Lets all ranks stop at the same step once any of them was asked to."""

from __future__ import annotations

from types import TracebackType

import torch
import torch.distributed as dist

from pipeline.distributed.world import World
from pipeline.signals import hold_stop_signals, release_stop_signals, stop_was_asked


class StopRequest:
    """Between entry and exit, SIGTERM, SIGUSR1 and SIGINT end no rank; `agreed` reports them.

    Slurm and a preempting scheduler signal all ranks, but not within the same step; some signal
    only one. Ranks vote in a gloo group of their own, so no step waits for the device because of
    it. Entering is a collective operation, in the main thread only.
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
        """Whether to stop now: the same answer on all ranks. Every rank calls it once after each
        step.

        The vote that starts here is read one step later, when it has long arrived. So a request
        takes effect after one to two steps, and the step in between hides the round trip. After
        True no further vote starts: do not call it again.
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

"""Files in which a site states its rules (robots.txt, tdmrep.json): each origin is asked for its
file once, and the answer is kept for a day."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from yarl import URL

# RFC 9309 (2.4) lets a crawler keep a robots.txt for a day at most.
KEEP_S = 24 * 3600.0
# After a failure the origin is asked again ten minutes later, not by each of its URLs at once.
KEEP_FAILURE_S = 600.0
MAX_ORIGINS = 20_000

Rules = TypeVar("Rules")


class OncePerOrigin(Generic[Rules]):
    """Calls `load` once per origin, however many URLs wait for its result. An exception of `load`
    is raised for each of these URLs."""

    def __init__(self, load: Callable[[URL], Awaitable[Rules]]) -> None:
        self._load = load
        self._origins: OrderedDict[str, tuple[float, asyncio.Task[Rules]]] = OrderedDict()

    async def get(self, url: URL) -> Rules:
        """What `load` returned, or raised, for the origin of `url`."""
        task = self._task_of(url)
        return task.result() if task.done() else await asyncio.shield(task)

    def _task_of(self, url: URL) -> asyncio.Task[Rules]:
        origin = str(url.origin())
        asked_at, task = self._origins.get(origin, (0.0, None))
        if task is None or time.monotonic() - asked_at > _keep_s(task):
            task = asyncio.create_task(self._awaited(url))
            # If all who waited are gone, asyncio would report an exception that nobody retrieved.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._origins[origin] = (time.monotonic(), task)
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return task

    async def _awaited(self, url: URL) -> Rules:
        return await self._load(url)


def _keep_s(task: asyncio.Task[Rules]) -> float:
    failed = task.done() and (task.cancelled() or task.exception() is not None)
    return KEEP_FAILURE_S if failed else KEEP_S

"""What a site says of itself in a file at its root: asked of each origin once, kept for a day."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from yarl import URL

# RFC 9309 (2.4) keeps a robots.txt no longer than a day.
KEEP_S = 24 * 3600.0
# A host that gave no answer is not asked again at once by each of its URLs, but within the hour.
KEEP_FAILURE_S = 600.0
MAX_ORIGINS = 20_000

Said = TypeVar("Said")


class OncePerOrigin(Generic[Said]):
    """`load` is awaited once for each origin, however many URLs wait for what it returns; what it
    raises is raised for each of them."""

    def __init__(self, load: Callable[[URL], Awaitable[Said]]) -> None:
        self._load = load
        self._origins: OrderedDict[str, tuple[float, asyncio.Task[Said]]] = OrderedDict()

    async def of(self, url: URL) -> Said:
        task = self._task_of(url)
        return task.result() if task.done() else await asyncio.shield(task)

    def _task_of(self, url: URL) -> asyncio.Task[Said]:
        origin = str(url.origin())
        asked_at, task = self._origins.get(origin, (0.0, None))
        if task is None or time.monotonic() - asked_at > _keep_s(task):
            task = asyncio.create_task(self._awaited(url))
            # Nobody may be left to wait for it, and asyncio reports errors that nobody took.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._origins[origin] = (time.monotonic(), task)
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return task

    async def _awaited(self, url: URL) -> Said:
        return await self._load(url)


def _keep_s(task: asyncio.Task[Said]) -> float:
    failed = task.done() and (task.cancelled() or task.exception() is not None)
    return KEEP_FAILURE_S if failed else KEEP_S

"""Calls a function on many units of work in several processes, and yields the results in order.

The worker processes end with this process, even if it ends by kill -9. A worker that is killed and
a unit that makes no progress are errors, not endless waits.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from data_tools.tables.schema import DataError

Result = TypeVar("Result")
UNIT_TIMEOUT_S = 3600.0
# Units that wait for a free worker: enough to keep it busy, few enough to need no memory.
QUEUED_PER_WORKER = 2


def in_processes(
    function: Callable[..., Result],
    units: Iterable[tuple[Any, ...]],
    processes: int,
    timeout_s: float = UNIT_TIMEOUT_S,
) -> Iterator[Result]:
    """Yield `function(*unit)` of each unit, in order; `units` is read as workers become free.

    `function` must be importable by name. With one process, or one unit, it runs in this process.
    Errors of the function are raised as they are. A killed worker, and a unit that takes longer
    than `timeout_s`, raise DataError.
    """
    units = iter(units)
    first = list(islice(units, 2))
    if processes == 1 or len(first) < 2:
        for unit in chain(first, units):
            yield function(*unit)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_worker
    )
    try:
        yield from _in_order(pool, function, chain(first, units), processes, timeout_s)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most often because memory ran out: run again with fewer "
            "processes, it goes on from here"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()


def _in_order(
    pool: ProcessPoolExecutor,
    function: Callable[..., Result],
    units: Iterable[tuple[Any, ...]],
    processes: int,
    timeout_s: float,
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for unit in units:
        waiting.append(pool.submit(function, *unit))
        if len(waiting) > QUEUED_PER_WORKER * processes:
            yield _result(waiting.popleft(), timeout_s)
    while waiting:
        yield _result(waiting.popleft(), timeout_s)


def _result(future: Future[Result], timeout_s: float) -> Result:
    try:
        return future.result(timeout_s)
    except FutureTimeout as error:
        if future.done():  # the function itself raised it
            raise
        raise DataError(
            f"a worker has been at one piece of work for {timeout_s:.0f} s: the storage does not "
            "answer? Run again, it goes on from here"
        ) from error


def prepare_worker() -> None:
    """Initialise a worker: it ignores Ctrl-C, which the parent handles, and ends when the parent is
    gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""One way to show progress: a rich bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_S = 10.0


class StageProgress:
    """Shows how much of a stage's work is done, on stderr.

        with StageProgress("search", total=1900) as progress:
            progress.advance()

    The stage counts every unit that it is finished with, also one that failed or was left out, so
    that a stage that ends without an error ends at its total. With `total` None the bar has no end
    until the stage has one.
    """

    def __init__(self, name: str, total: int | None = None) -> None:
        self.name, self.total, self.done = name, total, 0
        self._started = self._logged = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> StageProgress:
        if sys.stderr.isatty():
            columns: list[ProgressColumn] = [
                TextColumn("{task.description:>10}"),
                BarColumn(),
                MofNCompleteColumn(),
                *(TimeElapsedColumn(), TextColumn("elapsed")),
            ]
            if self.total is not None:
                columns += [TimeRemainingColumn(), TextColumn("left")]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.total is None:
            self.total = self.done
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.update(self.done + count)

    def update(self, done: int) -> None:
        """Set how many units are done."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            of_total = f"/{self.total}" if self.total else ""
            rate = done / max(self._logged - self._started, 1e-9)
            print(f"{self.name}: {done}{of_total} ({rate:.1f}/s)", file=sys.stderr, flush=True)

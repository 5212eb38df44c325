"""Ends a run that no longer makes steps, after writing where every rank stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_STALLED = 1
# When ranks hang in a collective, all stall within one step. The first to notice waits this long,
# so that the others can write their stacks too: launchers end all ranks once one is gone.
PEERS_WRITE_S = 3.0
LONGEST_END_S = 60.0  # limit for writing stacks, which hangs if the file system does not answer


class Watchdog:
    """Ends this process when `stall_s` seconds pass without `beat`, after writing the stacks of all
    threads to run_dir/stacks/rank_00003_step_1200.txt. Every rank has one of its own.

    A Python thread watches. It cannot run while native code waits and holds the interpreter's lock;
    then faulthandler's thread, which needs no lock, ends the process. That one does not know the
    step: run_dir/stacks/rank_00003_interpreter_stuck.txt.
    """

    def __init__(self, run_dir: Path | str, rank: int, stall_s: float) -> None:
        self._folder, self._rank, self._stall_s = Path(run_dir) / "stacks", rank, stall_s
        self._tick_s = min(1.0, stall_s / 10)
        self._step, self._doing = 0, "the start"
        self._beat_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._last_resort: BinaryIO = self._path("interpreter_stuck").open("wb")
        self._beat_at = time.monotonic()
        self._thread.start()
        return self

    def beat(self, doing: str = "", *, step: int | None = None) -> None:
        """Report progress: a finished `step`, or part of the work between steps (`doing`, such as
        "evaluation"). Costs 1 us."""
        self._doing = doing
        if step is not None:
            self._step = step
        self._beat_at = time.monotonic()

    def beating(self, work: Callable[P, R], doing: str = "evaluation") -> Callable[P, R]:
        """Wrap `work` so that each call counts as progress."""

        def beats_too(*args: P.args, **kwargs: P.kwargs) -> R:
            self.beat(doing)
            done = work(*args, **kwargs)
            self.beat()
            return done

        return beats_too

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._last_resort.close()
        self._path("interpreter_stuck").unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.is_set():
            faulthandler.dump_traceback_later(self._stall_s, file=self._last_resort, exit=True)
            if time.monotonic() - self._beat_at >= self._stall_s:
                self._end_process()
            self._ended.wait(self._tick_s)

    def _end_process(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._path("interpreter_stuck").unlink(missing_ok=True)  # it is not stuck: this runs
        limit = threading.Timer(LONGEST_END_S, os._exit, (EXIT_STALLED,))
        limit.daemon = True
        limit.start()
        path = self._path(f"step_{self._step}")
        doing = f", in {self._doing}" if self._doing else ""
        message = (
            f"error (rank {self._rank}): nothing finished for {self._stall_s:g} s (since step "
            f"{self._step}{doing})"
        )
        try:
            with path.open("w") as file:
                file.write(f"{message.partition(': ')[2]}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            message += f"; its stacks: {path}"
        except OSError as error:
            message += f"; its stacks could not be written: {error}"
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
        time.sleep(PEERS_WRITE_S)
        os._exit(EXIT_STALLED)  # no exit handler runs while other threads are stuck

    def _path(self, what: str) -> Path:
        return self._folder / f"rank_{self._rank:05d}_{what}.txt"

"""The thread that writes: every rank writes its own files, then all agree, then rank 0 makes them a
checkpoint.

The ranks agree through a gloo group that nothing else uses, so its collectives meet in the same
order on all ranks whatever training does meanwhile. Marker files would do on one machine; but on
NFS another node sees them up to a minute late (acdirmax), on a full disk they cannot be written,
and a killed rank leaves none: the others would wait for it until a timeout. A closed connection is
noticed at once, and every rank gets the same verdict.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import timedelta

from pipeline.config.run_files import name_of
from pipeline.distributed.group import Group, PeerError
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder
from pipeline.engine.checkpoint.record import (
    Parameter,
    Piece,
    RankRecord,
    Record,
    generators_name,
    tensors_name,
)
from pipeline.engine.checkpoint.refusal import refusal
from pipeline.engine.checkpoint.snapshot import Snapshot
from pipeline.engine.checkpoint.tensors import write_blocks

RecordOf = Callable[[list[RankRecord]], Record]


@dataclass(frozen=True)
class Written:
    """A finished checkpoint: bytes over all ranks, seconds of this rank."""

    step: int
    num_bytes: int
    copied_s: float
    written_s: float


@dataclass(frozen=True)
class Work:
    """One rank's share of a checkpoint. `snapshot` must not change until the thread is done."""

    step: int
    snapshot: Snapshot
    pieces: list[Piece]
    parameters: dict[str, Parameter]
    generators: str
    record_of: RecordOf
    """Called on rank 0: makes the checkpoint's record from what all ranks have written."""


class Writer:
    """Writes at most one checkpoint at a time. `finished` is called in rank 0's thread when one has
    its final name."""

    def __init__(
        self,
        folder: CheckpointFolder,
        ranks: Group,
        timeout: timedelta,
        *,
        finished: Callable[[Written], None],
    ) -> None:
        self._folder, self._ranks, self._timeout = folder, ranks, timeout
        self._finished = finished
        self._verdict: Future[None] | None = None
        self._step = 0

    def start(self, work: Work) -> None:
        self._verdict, self._step = Future(), work.step
        # daemon: a hanging disk must not keep a process alive that is to end
        threading.Thread(
            target=self._run, args=(work, self._verdict), name="checkpoint", daemon=True
        ).start()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was started and not yet waited for; the same on all ranks, because
        they start and wait together."""
        return self._verdict is not None

    @property
    def busy(self) -> bool:
        return self._verdict is not None and not self._verdict.done()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the checkpoint that was started, if any.

        If any rank could not write, raises on every rank: CheckpointError on rank 0, PeerError on
        the others.
        """
        if self._verdict is None:
            return
        # the thread ends by itself when a peer is late; this is for a disk that hangs
        limit = timeout_s or 1.1 * self._timeout.total_seconds()
        try:
            self._verdict.result(limit)
        except FutureTimeout:
            raise CheckpointError(
                f"{self._folder[self._step]}: not written within {limit:.0f} s; is the file "
                f"system of run_dir hanging? cluster.timeout_minutes is how long to wait"
            ) from None
        finally:
            self._verdict = None

    def _run(self, work: Work, verdict: Future[None]) -> None:
        try:
            self._write_and_agree(work)
        except Exception as error:  # `wait` raises it in the main thread
            verdict.set_exception(error)
        else:
            verdict.set_result(None)

    def _write_and_agree(self, work: Work) -> None:
        began, copied_s = time.monotonic(), 0.0
        outcome: RankRecord | str
        try:
            copied_s = work.snapshot.wait()
            outcome = self._write(work)
        except Exception as error:  # whatever it was, the other ranks must learn of it
            outcome = f"rank {self._ranks.rank}: {type(error).__name__}: {error}"
        try:
            outcomes = self._ranks.gather(outcome)
            problem = self._ranks.broadcast(lambda: self._commit(work, outcomes, copied_s, began))
        except (CheckpointError, PeerError):
            raise
        except RuntimeError as error:  # gloo's
            raise PeerError(
                f"another rank ended while a checkpoint was written: {error}"
            ) from error
        if problem is not None:
            raise refusal(self._ranks, problem)

    def _write(self, work: Work) -> RankRecord:
        aside, rank = self._folder.aside(work.step), self._ranks.rank
        aside.mkdir(parents=True, exist_ok=True)
        files = [
            write_blocks(aside / tensors_name(rank), work.snapshot.blocks()),
            write_blocks(aside / generators_name(rank), [work.generators.encode()]),
        ]
        return RankRecord(files, work.pieces, work.parameters)

    def _commit(
        self, work: Work, outcomes: list[RankRecord | str], copied_s: float, began: float
    ) -> str | None:
        """Make the files a checkpoint; called on rank 0 with each rank's record or error message.
        Returns what went wrong, or None."""
        aside = self._folder.aside(work.step)
        failed = [text for text in outcomes if isinstance(text, str)]
        ranks = [rank for rank in outcomes if isinstance(rank, RankRecord)]
        if not failed:
            try:
                record = work.record_of(ranks)
                self._folder.commit(work.step, record.to_text(), record.files)
            except (OSError, CheckpointError) as error:
                failed = [f"rank 0: {type(error).__name__}: {error}"]
            else:
                written_s = time.monotonic() - began
                self._finished(Written(work.step, record.num_bytes(), copied_s, written_s))
                return None
        shutil.rmtree(aside, ignore_errors=True)
        more = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
        return (
            f"checkpoint {name_of(work.step)} could not be written: {failed[0]}{more}. The one "
            f"before is untouched: make room or repair the file system, then start the same "
            f"command again"
        )

"""Decides when a checkpoint is due, saves it, and loads the one that a run resumes from."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch.distributed as dist

from pipeline.config import DataConfig, TrainJob
from pipeline.config.run_files import name_of
from pipeline.distributed.group import Group
from pipeline.distributed.world import World, seed_everything
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder
from pipeline.engine.checkpoint.generators import generators_text, set_generators
from pipeline.engine.checkpoint.reader import misfits, read_fragments
from pipeline.engine.checkpoint.record import (
    RankRecord,
    Record,
    describe,
    generators_name,
    merge_parameters,
)
from pipeline.engine.checkpoint.refusal import refusal
from pipeline.engine.checkpoint.remote import RemoteCheckpoints, Uploader
from pipeline.engine.checkpoint.search import Search, refuse_other_run
from pipeline.engine.checkpoint.snapshot import Snapshot
from pipeline.engine.checkpoint.writer import Work, Writer, Written
from pipeline.engine.shards import Fragment
from pipeline.state import TrainState

# seconds that a failing run waits for a checkpoint that is being written
_GRACE_S = 10.0
_UPLOAD_TIMEOUT_S = 3600.0
_UPLOAD_ROUND_S = 5.0
# other nodes see a new folder on NFS within its acdirmax, 60 s by default
_SHARED_FOLDER_TIMEOUT_S = 90.0


class Shards(Protocol):
    """The part of ParameterShards that a checkpoint needs."""

    optimizer_step: int

    def fragments(self) -> list[Fragment]: ...

    def publish(self) -> None: ...


class Engine(Protocol):
    """The part of ClipEngine that a checkpoint needs."""

    @property
    def shards(self) -> Shards: ...

    def extra_state(self) -> dict[str, float | int | bool]: ...

    def load_extra_state(self, state: dict[str, float | int | bool]) -> None: ...


class CheckpointManager:
    """The checkpoints of one run. All methods are collective: every rank calls them at the same
    steps. As a context manager it is closed at the end.

    `data_fingerprint` guards against going on with other data. The constructor finds out whether
    all ranks can write to run_dir and whether checkpoint.remote answers: make it before the model.
    """

    def __init__(self, config: TrainJob, world: World, data_fingerprint: str) -> None:
        self._config, self._world, self._data_fingerprint = config, world, data_fingerprint
        # one for the main thread and one for the writers', so that neither waits for the other's
        groups = [dist.new_group(backend="gloo", timeout=world.timeout) for _ in range(2)]
        self._ranks = Group.of(groups[0])
        self._folder = CheckpointFolder(Path(config.run_dir) / "checkpoints")
        self._open_folder()
        self._remote: RemoteCheckpoints | None = None
        self._uploader: Uploader | None = None
        if config.checkpoint.remote:
            self._open_remote(config.checkpoint.remote)
        self._writer = Writer(
            self._folder, Group.of(groups[1]), world.timeout, finished=self._finished
        )
        self._snapshot = Snapshot(world.device)
        self._run_id = self._ranks.broadcast(lambda: uuid.uuid4().hex)
        self._began = time.monotonic()
        self._stall_s = 0.0
        self._training = False

    def due(self, state: TrainState) -> bool:
        """Whether to save now: by steps, or by the minutes of rank 0's clock, which is read at log
        steps, where ranks wait for each other anyway (one all-reduce of two numbers on the host).

        Raises on all ranks, CheckpointError on rank 0 and PeerError elsewhere, when one could not
        write the last checkpoint.
        """
        by_clock = False
        if state.step % self._config.logging.every_steps == 0:
            by_clock = self._poll()
        return by_clock or state.step % self._config.checkpoint.every_steps == 0

    def save(self, engine: Engine, state: TrainState) -> float:
        """Start a checkpoint and return the seconds that training stood still: for the copy into
        host memory and, if the checkpoint before is not written yet, for that. The writer thread
        does the rest.

        Raises on all ranks, as `due` does, when the one before could not be written.
        """
        began = time.monotonic()
        self._writer.wait()
        fragments = engine.shards.fragments()
        self._snapshot.take(fragments)
        pieces, parameters = describe(fragments)
        record_of = partial(  # a copy: the state goes on while this is written
            self._record, replace(state), engine.extra_state(), engine.shards.optimizer_step
        )
        self._writer.start(
            Work(state.step, self._snapshot, pieces, parameters, generators_text(), record_of)
        )
        self._began = time.monotonic()
        self._stall_s = self._began - began
        return self._stall_s

    def load_latest(self, engine: Engine) -> TrainState:
        """Load the newest whole checkpoint of run_dir, else of checkpoint.remote, into the engine,
        and return its state; a fresh state when there is none.

        Raises CheckpointError when there are checkpoints but none is whole, when the newest whole
        one belongs to other data or another model, and, once training has begun, when there is none
        to go back to.
        """
        self._writer.wait()
        record = Search(self._folder, self._world, self._ranks, self._remote).newest_whole()
        if record is None:
            if self._training:
                raise refusal(
                    self._ranks,
                    f"{self._folder.path}: no checkpoint to go back to yet; start another run_dir "
                    f"with a lower train.lr, or save more often (checkpoint.every_steps)",
                )
            self._training = True
            return TrainState()
        path = self._folder[record.step]
        self._refuse_misfits(path, record, engine)
        self._compare_with_remote(record)
        with self._world.raise_on_all_ranks(f"load {path.name}"):
            read_fragments(path, record, engine.shards.fragments())
            engine.shards.optimizer_step = record.optimizer_step
        engine.shards.publish()
        engine.load_extra_state(record.extra_state)
        self._restore_generators(path, record)
        self._run_id, self._training = record.run_id, True
        self._began = time.monotonic()
        return TrainState(record.step, record.samples_seen, record.rollbacks)

    def close(self, *, upload: bool = True) -> None:
        """Wait until the last checkpoint is written and, unless `upload` is False, copied to
        checkpoint.remote. A run that was asked to stop has no time for the copy; its next start
        makes it.

        Raises on all ranks, as `due` does, when the last checkpoint could not be written.
        """
        self._writer.wait()
        if self._remote is not None:
            self._end_uploads(upload)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self._writer.wait(_GRACE_S)
        except (CheckpointError, RuntimeError) as other:
            self._world.tell(f"warning: {other}")

    def _open_folder(self) -> None:
        """Check that all ranks share run_dir: every rank writes a file, and rank 0 must see all of
        them. Otherwise a run_dir that is not shared by the nodes would fail at the first
        checkpoint."""
        path, rank = self._folder.path, self._world.rank
        with self._world.raise_on_all_ranks(f"write to {path}"):
            try:
                path.mkdir(parents=True, exist_ok=True)
                (path / f".probe_{rank}").write_text(f"{rank}\n")
            except OSError as error:
                fix = "put a folder there, or a link to one, that can be written"
                raise OSError(error.errno, f"{error.strerror}; {fix}", str(path)) from error
        with self._world.raise_on_all_ranks(f"share {path}"):
            if self._world.is_main:
                self._see_probes()
                self._folder.clean_up()

    def _open_remote(self, url: str) -> None:
        config, remote = self._config.checkpoint, None
        with self._world.raise_on_all_ranks("open checkpoint.remote"):
            remote = RemoteCheckpoints(url)
            if self._world.is_main:
                remote.check_reachable()
                self._uploader = Uploader(
                    remote, self._folder.__getitem__, config.kept, self._world.tell
                )
        self._remote = remote

    def _end_uploads(self, wanted: bool) -> None:
        """Wait for rank 0's upload on all ranks together, in rounds shorter than the timeout of a
        collective operation: Slurm ends ranks that are left 30 s after the first has ended."""
        deadline = time.monotonic() + _UPLOAD_TIMEOUT_S
        going_on = wanted
        while going_on:
            unfinished = self._uploader is not None and not self._uploader.finish(_UPLOAD_ROUND_S)
            (going_on,) = self._ranks.any([unfinished and time.monotonic() < deadline])
        if self._uploader is not None:
            self._uploader.give_up()
        self._remote = self._uploader = None

    def _see_probes(self) -> None:
        probes = {f".probe_{rank}" for rank in range(self._world.world_size)}
        deadline = time.monotonic() + _SHARED_FOLDER_TIMEOUT_S
        while missing := probes - {found.name for found in self._folder.path.glob(".probe_*")}:
            if time.monotonic() > deadline:
                ranks = sorted(int(name.removeprefix(".probe_")) for name in missing)
                raise CheckpointError(
                    f"{self._folder.path}: what ranks {ranks[:8]} write does not arrive here; put "
                    f"run_dir on a file system that all nodes share"
                )
            time.sleep(0.2)
        for found in self._folder.path.glob(".probe_*"):
            found.unlink(missing_ok=True)

    def _poll(self) -> bool:
        """Whether a checkpoint is due by the clock: the same answer on all ranks. If the last one
        could not be written, all ranks raise."""
        minutes = self._config.checkpoint.every_minutes
        if minutes is None and not self._writer.pending:
            return False
        late = minutes is not None and time.monotonic() - self._began >= 60.0 * minutes
        due, busy = self._ranks.any([late and self._world.is_main, self._writer.busy])
        if not busy:
            self._writer.wait()
        return due

    def _record(
        self,
        state: TrainState,
        extra_state: dict[str, float | int | bool],
        optimizer_step: int,
        ranks: list[RankRecord],
    ) -> Record:
        return Record(
            **asdict(state),
            run_id=self._run_id,
            data_fingerprint=self._data_fingerprint,
            world_size=self._world.world_size,
            optimizer_step=optimizer_step,
            extra_state=extra_state,
            parameters=merge_parameters(ranks),
            files=[file for rank in ranks for file in rank.files],
            pieces=[rank.pieces for rank in ranks],
        )

    def _finished(self, written: Written) -> None:
        """Report a written checkpoint, upload it and delete old ones; called in rank 0's writer
        thread."""
        self._world.tell(
            f"checkpoint {name_of(written.step)}: {written.num_bytes / 1e6:,.1f} MB in "
            f"{written.written_s:.1f} s; training stood still for {1e3 * self._stall_s:.0f} ms, "
            f"the device copied for {1e3 * written.copied_s:.0f} ms"
        )
        spared: set[int] = set()
        if self._uploader is not None:
            self._uploader.add(written.step)
            spared = self._uploader.in_use()
        try:
            self._folder.prune(written.step, self._config.checkpoint.kept, spared)
        except OSError as error:
            self._world.tell(f"warning: an old checkpoint could not be deleted: {error}")

    def _compare_with_remote(self, record: Record) -> None:
        """Upload this checkpoint if checkpoint.remote does not have it."""
        if self._remote is not None:
            newest = self._ranks.broadcast(partial(refuse_other_run, self._remote, record))
            if self._uploader is not None and (newest is None or newest < record.step):
                self._uploader.add(record.step)

    def _refuse_misfits(self, path: Path, record: Record, engine: Engine) -> None:
        forced = any(field.partition(".")[0] == "data" for field in self._config.force)
        if record.data_fingerprint != self._data_fingerprint and not forced:
            raise refusal(
                self._ranks,
                f"{path}: data_fingerprint was {record.data_fingerprint}, is now "
                f"{self._data_fingerprint}; resume with the same data, or start another run_dir; "
                f"force=[{_samples_field(self._config.data)}] goes on with other data all the same",
            )
        pieces, parameters = describe(engine.shards.fragments())
        ranks = self._ranks.gather(RankRecord([], pieces, parameters))
        wrong = self._ranks.broadcast(lambda: misfits(record, merge_parameters(ranks)))
        if wrong:
            more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise refusal(
                self._ranks,
                f"{path} is of another model: {', '.join(wrong[:4])}{more}. Resume with the model "
                f"of run_dir/config.yaml, or start another run_dir",
            )

    def _restore_generators(self, path: Path, record: Record) -> None:
        if record.world_size == self._world.world_size:
            with self._world.raise_on_all_ranks(f"load {path.name}"):
                set_generators((path / generators_name(self._world.rank)).read_text())
            return
        seed_everything(self._config.train.seed * 1_000_003 + record.step, self._world.rank)
        self._world.tell(
            f"{path.name} was written by {record.world_size} ranks, these are "
            f"{self._world.world_size}: random generators are seeded anew from train.seed and the "
            f"step"
        )


def _samples_field(data: DataConfig) -> str:
    """Full name of the field that says where the samples come from."""
    given = [name for name in ("mixture", "stream") if getattr(data, name)]
    return f"data.{(given or ['manifest'])[0]}"

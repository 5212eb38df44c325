"""Finds the checkpoint that a run resumes from: the newest whole one in run_dir or
checkpoint.remote."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pipeline.config.run_files import name_of
from pipeline.distributed.group import Group
from pipeline.distributed.world import World
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder
from pipeline.engine.checkpoint.record import Record
from pipeline.engine.checkpoint.refusal import refusal
from pipeline.engine.checkpoint.remote import RemoteCheckpoints
from pipeline.engine.checkpoint.tensors import problem_of


@dataclass(frozen=True)
class Search:
    """Every method is collective, and all ranks find the same."""

    folder: CheckpointFolder
    world: World
    ranks: Group
    remote: RemoteCheckpoints | None

    def newest_whole(self) -> Record | None:
        """The record of the newest whole checkpoint; None when there is no checkpoint anywhere. One
        that is only in `remote` is copied to `folder`. CheckpointError when none is whole."""
        problems: list[str] = []
        for step in self.ranks.broadcast(self.folder.steps):
            record = self._whole(step, problems)
            if record is not None:
                if problems:
                    self.world.tell(f"{'; '.join(problems)}: going on from {name_of(step)}")
                self.ranks.broadcast(partial(self.folder.point_latest_to, step))
                return record
        if self.remote is not None:
            for step in self.ranks.broadcast(self.remote.whole_steps):
                record = self._fetched(self.remote, step, problems)
                if record is not None:
                    return record
        if problems:
            raise refusal(
                self.ranks,
                f"{self.folder.path}: no checkpoint is whole: {'; '.join(problems)}. Restore one "
                f"from a copy, or start another run_dir",
            )
        return None

    def _whole(self, step: int, problems: list[str]) -> Record | None:
        """Compare a checkpoint with its checksums; each file is read once, by one rank. If one is
        damaged, every rank gets None and a line in `problems`."""
        name = name_of(step)
        text, problem = self.ranks.broadcast(lambda: _text_or_problem(self.folder, step))
        if problem:
            problems.append(f"{name} is damaged ({problem})")
            return None
        record = Record.of_text(text)
        share = record.files[self.ranks.rank :: self.ranks.size]
        found = [problem_of(self.folder[step], file) for file in share]
        everywhere = sum(self.ranks.all_gather(found), [])
        wrong = sorted(problem for problem in everywhere if problem is not None)
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            problems.append(f"{name} is damaged ({wrong[0]}{more})")
            return None
        return record

    def _fetched(self, remote: RemoteCheckpoints, step: int, problems: list[str]) -> Record | None:
        """Copy a checkpoint from `remote`, each rank its share of the files, then check it as
        `_whole` does."""
        name, world = name_of(step), self.world

        def state() -> tuple[str, str]:
            try:
                text = remote.state_text(step)
                Record.of_text(text)
            except FileNotFoundError:
                return "", "not all of it has arrived"
            except CheckpointError as error:
                return "", str(error)
            return text, ""

        text, problem = self.ranks.broadcast(state)
        if problem:
            problems.append(f"{remote.url}/{name} is damaged ({problem})")
            return None
        self.world.tell(f"no whole checkpoint in {self.folder.path}: fetching {remote.url}/{name}")
        files = Record.of_text(text).files
        with world.raise_on_all_ranks(f"fetch {remote.url}/{name}"):
            share = [file.name for file in files[world.rank :: world.world_size]]
            remote.download(step, share, self.folder.aside(step))
        self.ranks.broadcast(lambda: self.folder.commit(step, text, files))
        return self._whole(step, problems)


def _text_or_problem(folder: CheckpointFolder, step: int) -> tuple[str, str]:
    try:
        text = folder.state_text(step)
        Record.of_text(text)
    except CheckpointError as error:
        return "", str(error)
    return text, ""


def refuse_other_run(remote: RemoteCheckpoints, record: Record) -> int | None:
    """The newest step in `remote` whose state can be read, or None. Raises CheckpointError when it
    belongs to another run: two runs in one remote folder would delete each other's checkpoints."""
    for step in remote.whole_steps():
        try:
            newest = Record.of_text(remote.state_text(step))
        except (FileNotFoundError, CheckpointError):
            continue
        if newest.run_id != record.run_id:
            raise CheckpointError(
                f"checkpoint.remote = {remote.url} holds the checkpoints of another run: give a "
                f"folder of its own to this one"
            )
        return step
    return None

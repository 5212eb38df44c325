"""The folder of a run's checkpoints: a folder with a final name is whole, all others have names
that no reader looks at.

checkpoints/latest                             name of the newest, for people and scripts
checkpoints/step_00000200/state.json           record.py
                         /rank_00000.safetensors   what rank 0 owned: tensors.py
                         /rng_00000.json           its generators
                         /config.yaml              a copy of the run's
checkpoints/.step_00000400.tmp/                being written, or left by a run that was killed
last_checkpoint                                as latest; by it a start notices that all are gone
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

from data_tools.ground.aside import sync, sync_folder, write_text_aside
from pipeline.config.run_files import CONFIG, LAST_CHECKPOINT, name_of, steps_in
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.record import STATE, FileRecord, Record

LATEST = "latest"
_ASIDE = ".tmp"
_REPLACED = ".replaced.tmp"


class CheckpointFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, step: int) -> Path:
        return self.path / name_of(step)

    def aside(self, step: int) -> Path:
        return self.path / f".{name_of(step)}{_ASIDE}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, newest first, whole or damaged. `latest` is not asked:
        after a run was killed between the rename and `latest`, there is a newer one than it
        names."""
        return steps_in(self.path)

    def record(self, step: int) -> Record:
        """Read state.json of a step; CheckpointError when it is missing or damaged."""
        return Record.of_text(self.state_text(step))

    def state_text(self, step: int) -> str:
        try:
            return (self[step] / STATE).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{STATE} cannot be read ({error})") from error

    def clean_up(self) -> None:
        """Tidy up after a run that was killed: a checkpoint that was being replaced gets its name
        back, unfinished folders are deleted. Rank 0 calls this before any rank writes."""
        for left in self.path.glob(f".step_*{_REPLACED}"):
            final = self.path / left.name.removesuffix(_REPLACED).lstrip(".")
            if not final.exists():
                os.replace(left, final)
        for left in self.path.glob(f".step_*{_ASIDE}"):
            shutil.rmtree(left)

    def commit(self, step: int, state_text: str, files: Sequence[FileRecord]) -> None:
        """Rename a finished checkpoint to its final name, then update `latest`. If the process is
        killed anywhere in between, the folder holds this checkpoint or the one before, whole.

        One rank calls this once all files are written. Raises OSError when a file has another size
        than was written.
        """
        aside, final = self.aside(step), self[step]
        for file in files:
            found = (aside / file.name).stat().st_size
            if found != file.num_bytes:
                raise OSError(f"{file.name} has {found} of {file.num_bytes} bytes")
        write_synced(aside / STATE, state_text)
        config = self.path.parent / CONFIG
        if config.exists():  # for the day on which the run's own is lost
            write_synced(aside / CONFIG, config.read_text(encoding="utf-8"))
        sync_folder(aside)
        replaced = self.path / f".{name_of(step)}{_REPLACED}"
        if final.exists():  # damaged, or saved again after a roll-back
            os.replace(final, replaced)
        os.replace(aside, final)
        sync_folder(self.path)
        shutil.rmtree(replaced, ignore_errors=True)
        self.point_latest_to(step)

    def point_latest_to(self, step: int) -> None:
        aside = self.path / f".{LATEST}{_ASIDE}"
        write_synced(aside, name_of(step) + "\n")
        os.replace(aside, self.path / LATEST)
        sync_folder(self.path)
        write_text_aside(self.path.parent / LAST_CHECKPOINT, name_of(step) + "\n")

    def prune(self, newest: int, kept: int, spared: Container[int]) -> None:
        """Delete all checkpoints but the `kept` newest up to step `newest`, which was just written,
        and the steps in `spared`.

        Checkpoints later than `newest` are deleted too: the run went back behind them, because they
        were damaged or it was rolled back.
        """
        older = [step for step in self.steps() if step <= newest]
        for step in self.steps():
            if step not in older[:kept] and step not in spared:
                self.remove(self[step])

    def remove(self, path: Path) -> None:
        """Delete a folder; it is renamed first, so that a half-deleted one is not taken for a
        checkpoint."""
        doomed = path.with_name(f".{path.name.lstrip('.')}.deleted{_ASIDE}")
        try:
            os.replace(path, doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def write_synced(path: Path, text: str) -> None:
    """Write a text file that is not renamed by itself, and force it to the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)

"""The folder of a run's checkpoints: what is under a final name is whole, what is not lies aside.

checkpoints/latest                             name of the newest, for people and scripts
checkpoints/step_00000200/state.json           record.py
                         /rank_00000.safetensors   what rank 0 owned: tensors.py
                         /rng_00000.json           its generators
checkpoints/.step_00000400.tmp/                being written, or left by a run that was killed
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.record import STATE, FileRecord, Record

LATEST = "latest"
_ASIDE = ".tmp"
_REPLACED = ".replaced.tmp"


def name_of(step: int) -> str:
    return f"step_{step:08d}"


class CheckpointFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, step: int) -> Path:
        return self.path / name_of(step)

    def aside(self, step: int) -> Path:
        return self.path / f".{name_of(step)}{_ASIDE}"

    def steps(self) -> list[int]:
        """Newest first, whole or damaged. Not by `latest`: a run killed between the rename and
        `latest` has a newer one than that says."""
        names = (path.name.removeprefix("step_") for path in self.path.glob("step_*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def record(self, step: int) -> Record:
        """CheckpointError when there is none that can be read."""
        return Record.of_text(self.state_text(step))

    def state_text(self, step: int) -> str:
        try:
            return (self[step] / STATE).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{STATE} cannot be read ({error})") from error

    def clean_up(self) -> None:
        """After a run that was killed: what it was replacing gets its name back, what it left aside
        goes. By rank 0, before anyone writes."""
        for left in self.path.glob(f".step_*{_REPLACED}"):
            final = self.path / left.name.removesuffix(_REPLACED).lstrip(".")
            if not final.exists():
                os.replace(left, final)
        for left in self.path.glob(f".step_*{_ASIDE}"):
            shutil.rmtree(left)

    def commit(self, step: int, state_text: str, files: Sequence[FileRecord]) -> None:
        """From aside to its final name, then `latest`: killed anywhere in between, the folder holds
        this checkpoint whole or the one before. By one rank, when all files are written."""
        aside, final = self.aside(step), self[step]
        for file in files:
            found = (aside / file.name).stat().st_size
            if found != file.num_bytes:
                raise OSError(f"{file.name} has {found} of {file.num_bytes} bytes")
        _write_durably(aside / STATE, state_text)
        _sync_folder(aside)
        replaced = self.path / f".{name_of(step)}{_REPLACED}"
        if final.exists():  # damaged, or saved again after a roll-back
            os.replace(final, replaced)
        os.replace(aside, final)
        _sync_folder(self.path)
        shutil.rmtree(replaced, ignore_errors=True)
        self.point_latest_to(step)

    def point_latest_to(self, step: int) -> None:
        aside = self.path / f".{LATEST}{_ASIDE}"
        _write_durably(aside, name_of(step) + "\n")
        os.replace(aside, self.path / LATEST)
        _sync_folder(self.path)

    def prune(self, newest: int, kept: int, spared: Container[int]) -> None:
        """Leave the `kept` newest up to `newest`, which was written just now, and the spared.

        Later ones than `newest` go too: they are of a future that the run has left, because they
        were damaged or it was rolled back.
        """
        older = [step for step in self.steps() if step <= newest]
        for step in self.steps():
            if step not in older[:kept] and step not in spared:
                self.remove(self[step])

    def remove(self, path: Path) -> None:
        """A folder that is being deleted has no final name: half of it is no checkpoint."""
        doomed = path.with_name(f".{path.name.lstrip('.')}.deleted{_ASIDE}")
        try:
            os.replace(path, doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

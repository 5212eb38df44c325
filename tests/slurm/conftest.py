from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def login_node(tmp_path: Path) -> Path:
    """A folder for executables that is all of PATH besides the system's own; no Slurm in it yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "manifest.json").write_text("{}")
    return [
        "experiment=tiny",
        f"data.manifest={tmp_path / 'manifest.json'}",
        f"run_dir={tmp_path / 'runs' / 'mine'}",
    ]

"""Where the configuration files lie: in the repository's conf/, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of dataset.yaml, train.yaml and their groups.

    A wheel carries it as data_tools/conf (setup.py puts it there). A source tree and an editable
    install have no such folder and use conf/ beside the packages.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"

"""Where the configuration files lie."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of dataset.yaml, train.yaml and their groups.

    data_tools/conf is a link to the repository's conf/, so that a wheel, which follows it, carries
    the files as data of a package.
    """
    return (Path(__file__).parents[1] / "conf").resolve()

"""The environment of the crawl's child processes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.crawl import child_processes


def test_a_child_finds_the_standard_library_before_site_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder stands for site-packages: a package, and a namesake of the library's."""
    package = tmp_path / "installed"
    package.mkdir()
    (package / "child.py").write_text("import dataclasses\nprint(dataclasses.__file__)\n")
    (tmp_path / "dataclasses.py").write_text("raise ImportError('the namesake')\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    child = child_processes._start("installed.child", "", subprocess.PIPE, None)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert printed.decode().strip() == dataclasses.__file__

"""The wheel has all that the commands read: they run where there is no clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.runs import ROOT

SOURCES = ("conf", "data_tools", "pipeline", "slurm")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def called(words: list[str], cwd: Path, **variables: str) -> str:
    """Run a command in `cwd` and return what it printed."""
    ended = subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of a clean copy; its dependencies come from the running environment."""
    copy, built, site = (tmp_path_factory.mktemp(name) for name in ("copy", "built", "site"))
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    called([*pip, "--no-build-isolation", "--wheel-dir", str(built), str(copy)], built)
    (wheel,) = built.glob("clip_pretrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def python(installed: Path, cwd: Path, *words: str) -> str:
    return called([sys.executable, *words], cwd, PYTHONPATH=str(installed))


@pytest.mark.slow
def test_every_data_file_of_the_tree_is_in_the_wheel(installed: Path) -> None:
    for file in (ROOT / "conf").rglob("*.yaml"):
        carried = installed / "data_tools" / "conf" / file.relative_to(ROOT / "conf")
        assert carried.read_bytes() == file.read_bytes()
    for package in ("data_tools", "pipeline", "slurm"):
        for pattern in ("*.sbatch", "*.j2", "*.txt"):
            for file in (ROOT / package).rglob(pattern):
                assert (installed / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
    assert (installed / "slurm" / "train.sbatch").exists()
    assert (installed / "data_tools" / "curate" / "boilerplate.txt").exists()
    assert not (installed / "conf").exists() and not (installed / "tests").exists()


@pytest.mark.slow
def test_both_halves_compose_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "from data_tools.config import load_job as data, CONF_DIR\n"
        "from pipeline.config.composition import load_job as train, CONF_DIR as other\n"
        "import data_tools, pipeline\n"
        "print(CONF_DIR == other, CONF_DIR, data_tools.__file__, pipeline.__file__, sep='\\n')\n"
        "job = train(['experiment=demo_smoke', 'data.manifest=m.json', 'eval.datasets=[]'])\n"
        "print(job.run_dir)\n"
        "print(data(['queries.path=q.txt', 'out_dir=d', 'source=commons',"
        " 'sources.contact=you@example.org']).out_dir)\n"
    )
    (tmp_path / "q.txt").write_text("red thing\n")
    (tmp_path / "m.json").write_text("{}")
    same, conf, *packages, run_dir, out_dir = python(
        installed, tmp_path, "-c", program
    ).splitlines()
    assert (same, run_dir, out_dir) == ("True", "runs/demo-smoke", "d")
    assert Path(conf) == installed / "data_tools" / "conf"
    assert all(Path(package).is_relative_to(installed) for package in packages)


@pytest.mark.slow
def test_commands_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("red thing\n")
    shown = python(
        installed,
        tmp_path,
        *("-m", "slurm.submit", "--shards", "--dry-run", "queries.path=q.txt", "out_dir=d"),
        *("source=commons", "sources.contact=you@example.org", "cluster.partition=cpu"),
    )
    assert str(installed / "slurm" / "shards.sbatch") in shown
    assert "usage" in python(installed, tmp_path, "-m", "data_tools.build", "--help").lower()
    python(installed, tmp_path, "-c", "import data_tools.demo.__main__")

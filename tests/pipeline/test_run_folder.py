"""What the ranks of a run agree on before its configuration changes: real processes over gloo."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from data_tools.ground.lock import take
from pipeline.config import TrainJob
from pipeline.config.frozen import load_frozen, to_yaml
from pipeline.config.schema import RefusedStartError
from pipeline.distributed.group import PeerError
from pipeline.distributed.world import World
from pipeline.run_folder import RunFolder
from pipeline.state import TrainState
from tests.gloo import run_gloo


def job(run_dir: Path, lr: float = 1e-3, **values: object) -> TrainJob:
    made = TrainJob(run_dir=str(run_dir))
    made.train.lr = lr
    for name, value in values.items():
        setattr(made, name, value)
    return made


def starts(rank: int, world_size: int, config: TrainJob, fault: str, step: int) -> str:
    """A start on one rank up to its configuration; returns what became of it."""
    world = World(rank, rank, world_size, torch.device("cpu"))
    if rank == 1 and fault == "other configuration":
        config.train.seed += 1
    try:
        folder = RunFolder(config, world)
        with world.raise_on_all_ranks("open the data"):
            if rank == 1 and fault == "no data":
                raise OSError("no data here")
        if fault == "disk full" and rank == 0:
            import pipeline.run_folder

            pipeline.run_folder.commit_config = Mock(side_effect=OSError("no room"))
        folder.accept(TrainState(step, 16 * step))
    except (RefusedStartError, PeerError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "trains"


def start(config: TrainJob, fault: str = "", step: int = 0) -> list[str]:
    return run_gloo(starts, 2, config, fault, step)


def begun(run_dir: Path) -> str:
    """The text of config.yaml of a run that has a checkpoint."""
    assert start(job(run_dir)) == ["trains"] * 2
    (run_dir / "checkpoints" / "step_00000005").mkdir(parents=True)
    return (run_dir / "config.yaml").read_text()


def test_the_first_start_writes_its_configuration(tmp_path: Path) -> None:
    text = begun(tmp_path / "run")
    assert text == to_yaml(job(tmp_path / "run"))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "none\n"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no data", "no data here"),
        ("disk full", "no room"),
        ("other configuration", "the ranks have read different configurations"),
    ],
)
def test_a_rank_that_cannot_start_leaves_the_file_as_it_was(
    fault: str, told: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ends = start(job(run_dir, lr=0.5), fault)
    assert all(told in end for end in ends) and not (run_dir / "config.yaml").exists()
    text = begun(run_dir)
    ends = start(job(run_dir, lr=0.5, force=["train.lr"]), fault, step=5)
    assert all(told in end for end in ends), ends
    assert (run_dir / "config.yaml").read_text() == text


def test_what_all_accept_is_the_run_s_configuration(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    forced = job(tmp_path / "run", lr=0.5, force=["train.lr"])
    assert start(forced, step=5) == ["trains"] * 2
    assert load_frozen(tmp_path / "run" / "config.yaml") == forced
    assert start(forced, step=5) == ["trains"] * 2, "a requeued job has the same file"
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".lock", "checkpoints", "config.yaml", "last_checkpoint"]


def test_every_rank_is_refused_alike(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    begun(run_dir)
    ends = start(job(run_dir, lr=0.5), step=5)
    assert len(set(ends)) == 1 and "RefusedStartError: run_dir" in ends[0]
    assert "+ train.lr: 0.5" in ends[0]
    (run_dir / "last_checkpoint").write_text("step_00000005\n")
    shutil.rmtree(run_dir / "checkpoints")
    ends = start(job(run_dir))
    assert len(set(ends)) == 1 and "this run has saved checkpoints" in ends[0]


def test_checkpoints_that_were_only_in_other_storage_belong_to_the_run_s_configuration(
    tmp_path: Path,
) -> None:
    """They were not there when the launcher looked; now they are loaded."""
    run_dir = tmp_path / "run"
    begun(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    changed = job(run_dir, lr=0.5)
    changed.checkpoint.remote = "s3://bucket/run"
    assert "+ train.lr: 0.5" in start(changed, step=5)[0]
    other = job(tmp_path / "new", lr=0.5)
    other.checkpoint.remote = "s3://bucket/run"
    assert start(other, step=5) == ["trains"] * 2


def test_a_run_that_is_being_trained_is_refused_on_all_ranks(tmp_path: Path) -> None:
    with take(tmp_path / ".lock") as lock:
        # of a process that is no parent of the ranks, and lives
        lock.truncate(0)
        lock.write(f'{{"host": "elsewhere", "pid": {os.getpid()}, "since": "noon"}}')
        lock.flush()
        ends = start(job(tmp_path))
    assert len(set(ends)) == 1
    assert f"trained already (process {os.getpid()} on elsewhere, since noon)" in ends[0]
    assert start(job(tmp_path)) == ["trains"] * 2

"""Ranks that save together, are killed, run out of room, and come back in other numbers."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.group import PeerError
from pipeline.engine.checkpoint import CheckpointError, folder, writer
from pipeline.state import TrainState
from tests.gloo import ChildError, run_gloo
from tests.pipeline.engine.checkpoint.sharded import Engine, manager


def save(rank: int, world_size: int, run_dir: str, stage: int, steps: list[int]) -> None:
    with manager(run_dir, rank, world_size) as checkpoints:
        for step in steps:
            engine = Engine(stage, rank, world_size).fill(step)
            torch.manual_seed(1000 * step + rank)
            checkpoints.save(engine, TrainState(step, 8 * step))
            engine.fill(99)


def load(rank: int, world_size: int, run_dir: str, *stages: int) -> list[tuple[int, bool, float]]:
    """For each stage the step, whether all values are of it, and the next random number."""
    found = []
    with manager(run_dir, rank, world_size) as checkpoints:
        for stage in stages:
            engine = Engine(stage, rank, world_size)
            step = checkpoints.load_latest(engine).step
            found.append((step, engine.holds(step), torch.rand(()).item()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world_size"), [(1, 2), (3, 3), (1, 1)])
def test_written_by_some_read_by_others(tmp_path, stage, world_size):
    run_gloo(save, world_size, str(tmp_path), stage, [10])
    for other_size in (1, 2, 3):
        results = run_gloo(load, other_size, str(tmp_path), 1, 3)
        assert all(step == 10 and holds for found in results for step, holds, _ in found)
        draws = [found[0][2] for found in results]
        assert len(set(draws)) == other_size
        torch.manual_seed(1000 * 10 + other_size - 1)
        assert (draws[-1] == torch.rand(()).item()) == (other_size == world_size)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_the_middle(path: Path, blocks: Iterator[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block[: len(block) // 2])
            file.flush()
            _die()


MOMENTS = {
    "in the middle of a write": (writer, "write_blocks", _die_in_the_middle),
    "written, not agreed": (writer.Group, "gather", _die),
    "before state.json": (folder, "write_synced", _die),
    "before the rename": (folder, "sync_folder", _die),
    "renamed, latest is the old one": (folder.CheckpointFolder, "point_latest_to", _die),
    "before the old ones go": (folder.CheckpointFolder, "prune", _die),
}


def save_and_die(
    rank: int, world_size: int, run_dir: str, victim: int, moment: str, step: int
) -> None:
    with manager(run_dir, rank, world_size) as checkpoints:
        checkpoints.load_latest(Engine(1, rank, world_size))
        if rank == victim:
            owner, name, replacement = MOMENTS[moment]
            setattr(owner, name, replacement)
        checkpoints.save(Engine(1, rank, world_size).fill(step), TrainState(step, 8 * step))
        checkpoints.close()


def go_on(rank: int, world_size: int, run_dir: str) -> tuple[int, bool]:
    """The step that was found, and whether all values are of it; then a checkpoint more."""
    engine = Engine(3, rank, world_size)
    with manager(run_dir, rank, world_size) as checkpoints:
        step = checkpoints.load_latest(engine).step
        found = step, engine.holds(step)
        checkpoints.save(engine.fill(40), TrainState(40, 320))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "victim"),
    [
        ("in the middle of a write", 0),
        ("in the middle of a write", 1),
        ("written, not agreed", 0),
        ("written, not agreed", 1),
        ("before state.json", 0),
        ("before the rename", 0),
        ("renamed, latest is the old one", 0),
        ("before the old ones go", 0),
    ],
)
def test_killed_while_saving(tmp_path, moment, victim):
    run_gloo(save, 2, str(tmp_path), 1, [10, 20])
    with pytest.raises(ChildError):
        run_gloo(save_and_die, 2, str(tmp_path), victim, moment, 30, timeout_s=60)
    step = 30 if "old" in moment else 20
    assert run_gloo(go_on, 2, str(tmp_path)) == [(step, True)] * 2
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["latest", f"step_000000{step}", "step_00000040"]


def save_and_fail(rank: int, world_size: int, run_dir: str, victim: int) -> list[str]:
    """What each of three failed writes has raised on this rank, which goes on after each."""
    told = []
    engine = Engine(1, rank, world_size)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with manager(run_dir, rank, world_size) as checkpoints:
        for step, found_at in ((20, "save"), (30, "due"), (40, "close")):
            if rank == victim:  # what a full disk does, in a file system that is not full
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
            checkpoints.save(engine.fill(step), TrainState(step, 8 * step))
            try:
                if found_at == "save":
                    checkpoints.save(engine, TrainState(step + 1, 0))
                elif found_at == "close":
                    checkpoints.close()
                else:
                    deadline = time.monotonic() + 20
                    while time.monotonic() < deadline:
                        checkpoints.due(TrainState(5))
                        time.sleep(0.02)
            except (CheckpointError, PeerError) as error:
                told.append(f"{type(error).__name__}: {error}")
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        checkpoints.save(engine.fill(50), TrainState(50, 400))
    return told


@pytest.mark.parametrize("victim", [0, 1])
def test_a_write_that_fails_is_told_by_every_rank(tmp_path, victim):
    run_gloo(save, 2, str(tmp_path), 1, [10])
    results = run_gloo(save_and_fail, 2, str(tmp_path), victim)
    for kind, told in zip(("CheckpointError: ", "PeerError: rank 0: "), results):
        assert len(told) == 3
        for step, text in zip((20, 30, 40), told):
            assert text.startswith(
                f"{kind}checkpoint step_000000{step} could not be written: rank {victim}: OSError: "
                f"[Errno 27] "
            )
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["latest", "step_00000010", "step_00000050"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system of 160 kB can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def save_until_full(rank: int, world_size: int, run_dir: str) -> str:
    engine = Engine(1, rank, world_size)
    with manager(run_dir, rank, world_size, kept=1) as checkpoints:
        checkpoints.save(engine.fill(10), TrainState(10, 80))
        checkpoints.close()
        if rank == 0:
            (Path(run_dir) / "hog").write_bytes(bytes(64 * 1024))
        dist.barrier()  # else the other rank may fill the disk before
        try:
            checkpoints.save(engine.fill(20), TrainState(20, 160))
            checkpoints.close()
        except (CheckpointError, PeerError) as error:
            return str(error)
    return ""


def test_a_full_disk(small_disk):
    told, told_too = run_gloo(save_until_full, 2, str(small_disk))
    assert "step_00000020 could not be written: rank" in told and "No space left" in told
    assert told in told_too
    left = sorted(path.name for path in (small_disk / "checkpoints").iterdir())
    assert left == ["latest", "step_00000010"]
    results = run_gloo(load, 2, str(small_disk), 1)
    assert [found[0][:2] for found in results] == [(10, True)] * 2


def load_or_error(rank: int, world_size: int, run_dir: str) -> tuple[int, str]:
    try:
        return load(rank, world_size, run_dir, 1)[0][0], ""
    except (CheckpointError, PeerError) as error:
        return -1, f"{type(error).__name__}: {error}"


def test_ranks_agree_on_what_is_damaged(tmp_path):
    run_gloo(save, 2, str(tmp_path), 1, [10, 20])
    for step in (20, 10):
        path = tmp_path / "checkpoints" / f"step_000000{step}" / "rank_00001.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 16
        path.write_bytes(content)
        results = run_gloo(load_or_error, 2, str(tmp_path))
        if step == 20:
            assert results == [(10, "")] * 2
    assert (
        results[0][1].startswith("CheckpointError: ") and "no checkpoint is whole" in results[0][1]
    )
    assert results[1][1].startswith("PeerError: ") and results[0][1][17:] in results[1][1]


def due_by_clock_of_rank_0(rank: int, world_size: int, run_dir: str) -> list[bool]:
    minutes = 1000.0 if rank else 1e-9  # rank 1's clock does not count
    with manager(
        run_dir, rank, world_size, every_steps=10**6, every_minutes=minutes
    ) as checkpoints:
        answers = []
        for step in range(1, 16):
            answers.append(checkpoints.due(TrainState(step)))
        return answers


def test_the_clock_of_rank_0_decides_for_all(tmp_path):
    one, other = run_gloo(due_by_clock_of_rank_0, 2, str(tmp_path))
    assert one == other
    assert [step for step, due in enumerate(one, 1) if due] == [5, 10, 15]


def elsewhere(rank: int, world_size: int, run_dir: str) -> str:
    from pipeline.engine.checkpoint import manager as module

    module._SHARED_FOLDER_TIMEOUT_S = 1.0
    try:
        manager(f"{run_dir}/{rank}", rank, world_size)
    except (CheckpointError, PeerError) as error:
        return str(error)
    return ""


def test_a_run_dir_that_is_not_shared_is_refused(tmp_path):
    one, other = run_gloo(elsewhere, 2, str(tmp_path))
    assert "what ranks [1] write does not arrive here" in one and one in other

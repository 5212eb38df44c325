"""GPUs of this machine against the ranks that are to start on it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from pipeline import launch
from pipeline.config import ClusterConfig, ConfigError
from pipeline.devices import local_gpu_problems, visible_gpus


@pytest.fixture(autouse=True)
def torch_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0")


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("2,3", 2),
        ("0,1,2,3", 4),
        ("0,7,1", 1),  # CUDA stops at the first that is not there
        ("GPU-aaaa,GPU-bbbb", 2),
        ("MIG-aaaa", None),
    ],
)
def test_what_cuda_would_show(chosen: str | None, seen: int | None, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible_gpus(environment, tmp_path) == seen


def test_a_machine_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus({}, tmp_path) == 0
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert visible_gpus({}, tmp_path) == 0


def test_a_rank_for_each_gpu_has_no_problem_and_no_gpu_takes_any_number() -> None:
    assert local_gpu_problems(ClusterConfig(ranks_per_node=8), 8) == []
    assert local_gpu_problems(ClusterConfig(ranks_per_node=5), 0) == []
    assert local_gpu_problems(ClusterConfig(ranks_per_node=5), None) == []


def test_idle_gpus_are_told_with_what_uses_or_hides_them() -> None:
    (problem,) = local_gpu_problems(ClusterConfig(ranks_per_node=2), 6)
    assert problem.startswith("cluster.ranks_per_node = 2: this machine shows 6 GPUs")
    assert "4 would idle; give cluster.ranks_per_node=6, CUDA_VISIBLE_DEVICES=0,1 " in problem


def test_two_ranks_on_one_gpu_are_told() -> None:
    (problem,) = local_gpu_problems(ClusterConfig(ranks_per_node=2), 1)
    assert "shows 1 GPU and a rank takes one; give cluster.ranks_per_node=1, or " in problem


@pytest.mark.parametrize(("ranks", "gpus", "trains"), [(1, 3, True), (4, 3, True), (4, 3, False)])
def test_the_launcher_refuses(
    ranks: int, gpus: int, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    with pytest.raises(ConfigError, match=f"shows {gpus} GPUs.*give cluster.ranks_per_node={gpus}"):
        launch.refuse_gpus_without_work(ClusterConfig(ranks_per_node=ranks), trains=trains)


def test_an_evaluation_may_leave_gpus_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 3)
    launch.refuse_gpus_without_work(ClusterConfig(ranks_per_node=1), trains=False)


def test_a_training_for_a_node_with_more_gpus_is_refused_on_any_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="4 would idle, as cluster.gpus_per_node = 8"):
        launch.refuse_gpus_without_work(
            ClusterConfig(ranks_per_node=4, gpus_per_node=8), trains=True
        )

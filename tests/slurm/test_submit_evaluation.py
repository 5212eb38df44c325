"""What slurm.submit --evaluate checks, submits and leaves alone; sbatch and squeue are scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.composition import load_job
from tests.pipeline.begun_runs import begin
from tests.slurm.login_node import ROOT, program, restarted, submit


@pytest.fixture
def trained(words: list[str], tmp_path: Path) -> Path:
    """A run of two nodes with a checkpoint of step 30, whose data is gone."""
    run_dir = tmp_path / "runs" / "mine"
    begin(load_job([*words, "cluster.nodes=2", "cluster.partition=gpu"]), step=30)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "birds" / "test").mkdir(parents=True)
    (tmp_path / "birds" / "test" / "nshards.txt").write_text("1")
    return run_dir


def test_an_evaluation_goes_beside_the_training(
    login_node: Path, trained: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    program(login_node, "sbatch", "echo 42")
    program(login_node, "squeue", "echo RUNNING")
    words = ["--evaluate", f"run_dir={trained}", f"eval.datasets=[{tmp_path / 'birds'}]"]
    for more in (["step=30", "ema=false"], ["cluster.setup=[module load cuda]"]):
        ended = submit(login_node, *words, *more, "cluster.time_limit=1")
        assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"submitted job 42; its output: {trained}/eval/slurm-42.out\n"
    first, second = json.loads((trained / "eval" / "submit.json").read_text())
    command = first["jobs"][0]["command"]
    assert {"--job-name=mine-eval", "--nodes=2", "--partition=gpu", "--time=1"} <= set(command)
    assert not any(word.startswith("--signal") for word in command)
    at = command.index(f"{ROOT}/slurm/evaluate.sbatch")
    assert command[at + 2 :] == [*words[1:], "cluster.time_limit=1", "step=30", "ema=false"]
    setups = [Path(entry["jobs"][0]["command"][at + 1]) for entry in (first, second)]
    assert setups[0] != setups[1]  # the second may not change what the first sources
    assert "module load cuda" in setups[1].read_text() and "cuda" not in setups[0].read_text()
    after = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    assert after == before


def test_a_dry_run_of_an_evaluation_writes_nothing(
    login_node: Path, trained: Path, tmp_path: Path
) -> None:
    before = sorted(trained.rglob("*"))
    words = [f"run_dir={trained}", f"eval.datasets=[{tmp_path / 'birds'}]", "train.steps=9"]
    ended = submit(login_node, "--evaluate", "--dry-run", *words)
    assert ended.returncode == 0, ended.stderr
    assert (ROOT / "slurm" / "evaluate.sbatch").read_text() in ended.stdout
    assert "no effect on an evaluation: train.steps" in ended.stderr
    assert sorted(trained.rglob("*")) == before


def test_an_evaluation_is_refused_with_everything_at_once(login_node: Path, trained: Path) -> None:
    ended = submit(login_node, "--evaluate", f"run_dir={trained}", "step=31")
    assert ended.returncode == 2
    for problem in ("there is: 30", "eval.datasets is empty"):
        assert problem in ended.stderr
    ended = submit(
        login_node, "--evaluate", f"run_dir={trained}", "eval.datasets=[.]", "cluster.time_limit=x"
    )
    assert ended.returncode == 2
    for problem in ("cluster.time_limit = x", "has no test/nshards.txt"):
        assert problem in ended.stderr
    assert submit(login_node, f"run_dir={trained}", "step=30").returncode == 2
    ended = submit(login_node, "--evaluate", "--shards", f"run_dir={trained}")
    assert ended.returncode == 2 and "--evaluate --shards: a job is one of them" in ended.stderr


def test_an_evaluation_that_is_restarted_for_ever_stops(tmp_path: Path) -> None:
    ended = restarted("evaluate.sbatch", tmp_path, 6)
    assert ended.returncode == 1 and "job 42 was restarted 6 times, more than 5" in ended.stderr

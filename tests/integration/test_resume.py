"""Killed at any moment, a run goes on with the same samples and the same losses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.runs import last_step, metrics, ranks_of, run, start, tiny_shards, wait_until


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict]]:
    """The overrides of a run (without run_dir) and the metrics that it has when nothing happens."""
    folder = tmp_path_factory.mktemp("resume")
    overrides = ["experiment=tiny", f"data.manifest={tiny_shards(folder / 'data')}"]
    ended = run(*overrides, f"run_dir={folder / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return overrides, metrics(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "after_step"), [(1, 7), (0, 12)])
def test_kill_9_of_a_rank_then_resume_equals_undisturbed(
    undisturbed: tuple[list[str], list[dict]], tmp_path: Path, victim: int, after_step: int
) -> None:
    overrides, expected = undisturbed
    run_dir, log = tmp_path / "run", tmp_path / "log"
    offline = "logging.wandb_mode=offline"
    process = start(*overrides, f"run_dir={run_dir}", offline, log=log)
    wait_until(lambda: last_step(run_dir) >= after_step, process, log)
    ranks_of(process)[victim].send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == 128 + signal.SIGKILL, log.read_text()
    assert f"rank {victim} of 2 was killed by signal 9" in log.read_text()
    assert last_step(run_dir) < 20  # else the kill came too late to test anything

    ended = run(f"run_dir={run_dir}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # bit for bit: losses, gradient norms, learning rates and the checksum of the samples' keys
    assert metrics(run_dir) == expected
    run_id = (run_dir / "wandb_id").read_text()
    records = list((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(records) == 2  # of the killed and of the resumed run: one run for `wandb sync`


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(
    undisturbed: tuple[list[str], list[dict]], tmp_path: Path
) -> None:
    overrides, expected = undisturbed
    run_dir = tmp_path / "run"
    for _ in range(2):
        ended = run(*overrides, f"run_dir={run_dir}", "checkpoint.every_steps=20")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert metrics(run_dir) == expected

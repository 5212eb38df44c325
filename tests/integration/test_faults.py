"""A run whose ranks die, hang or compute nonsense, and what is left of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from tests.integration.runs import last_step, metrics, run, start, tiny_shards, wait_until

FAULTY = "tests.integration.faulty_train"
STEPS = 12

pytestmark = pytest.mark.slow  # each starts two or three trainings of two ranks, 12 s each


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict]]:
    """The overrides of a run (without run_dir) and the metrics that it has when nothing happens."""
    folder = tmp_path_factory.mktemp("faults")
    manifest = tiny_shards(folder / "data")
    overrides = ["experiment=tiny", f"data.manifest={manifest}", f"train.steps={STEPS}"]
    ended = run(*overrides, f"run_dir={folder / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return overrides, metrics(folder / "run")


def faulty(
    fault: str, *overrides: str, monkeypatch: pytest.MonkeyPatch
) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("FAULT", fault)
    return run(*overrides, module=FAULTY)


exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        pytest.param("kill-forward", 0, marks=exhaustive),
        ("kill-forward", 1),
        ("kill-backward", 0),
        pytest.param("kill-backward", 1, marks=exhaustive),
        pytest.param("kill-write", 0, marks=exhaustive),
        ("kill-write", 1),
    ],
)
def test_killed_in_any_phase_it_goes_on_as_if_it_had_not_been(
    undisturbed, tmp_path, monkeypatch, kind, rank
):
    check_killed(undisturbed, tmp_path, monkeypatch, f"{kind}:{rank}:7")


def test_killed_between_the_rename_and_latest(undisturbed, tmp_path, monkeypatch):
    check_killed(undisturbed, tmp_path, monkeypatch, "kill-before-latest:0:7")
    # the checkpoint had its final name already: nothing of it was done again
    told = (tmp_path / "resumed").read_text()
    assert "goes on from step 10" in told and "step 10/12" not in told


def check_killed(undisturbed, tmp_path, monkeypatch, fault):
    overrides, expected = undisturbed
    run_dir = f"run_dir={tmp_path / 'run'}"
    ended = faulty(fault, *overrides, run_dir, monkeypatch=monkeypatch)
    told = ended.stdout + ended.stderr
    assert ended.returncode == 128 + signal.SIGKILL, told
    assert f"rank {fault.split(':')[1]} of 2 was killed by signal 9" in ended.stderr
    assert "Traceback" not in told, told
    again = run(run_dir)
    (tmp_path / "resumed").write_text(again.stdout + again.stderr)
    assert again.returncode == 0, again.stdout + again.stderr
    assert metrics(tmp_path / "run") == expected
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["latest", "step_00000010", "step_00000012"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_it_saves_and_goes_on_from_there(undisturbed, tmp_path, number):
    overrides, expected = undisturbed
    run_dir, log = tmp_path / "run", tmp_path / "log"
    process = start(*overrides, f"run_dir={run_dir}", log=log)
    wait_until(lambda: last_step(run_dir) >= 6, process, log)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75, log.read_text()
    stopped_at = last_step(run_dir)
    assert 6 <= stopped_at < STEPS
    assert (run_dir / "checkpoints" / f"step_{stopped_at:08d}" / "state.json").exists()
    again = run(f"run_dir={run_dir}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert metrics(run_dir) == expected
    assert "Traceback" not in log.read_text() + again.stderr


def test_a_damaged_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path):
    overrides, expected = undisturbed
    run_dir = tmp_path / "run"
    process = start(*overrides, f"run_dir={run_dir}", log=tmp_path / "log")
    newer = run_dir / "checkpoints" / "step_00000010"  # written aside, beside the steps
    wait_until(lambda: newer.exists() and last_step(run_dir) >= 11, process, tmp_path / "log")
    process.kill()
    process.wait(timeout=60)
    newest = max((run_dir / "checkpoints").glob("step_*"))
    file = newest / "rank_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    again = run(f"run_dir={run_dir}")
    told = again.stdout + again.stderr
    assert again.returncode == 0, told
    assert newest.name in told and "rank_00001.safetensors" in told
    assert metrics(run_dir) == expected


@pytest.mark.parametrize(("before", "after"), [((2, 1), (1, 3)), ((1, 2), (2, 1))])
def test_other_ranks_and_stage_go_on_with_the_same_samples(undisturbed, tmp_path, before, after):
    overrides, expected = undisturbed
    run_dir = f"run_dir={tmp_path / 'run'}"
    for (ranks, stage), steps in ((before, "checkpoint.every_steps=6"), (after, "")):
        words = [f"cluster.ranks_per_node={ranks}", f"deepspeed.zero_stage={stage}"]
        if steps:
            log = tmp_path / "log"
            process = start(*overrides, run_dir, *words, steps, log=log)
            wait_until(lambda: (tmp_path / "run" / "checkpoints" / "latest").exists(), process, log)
            process.kill()
            process.wait(timeout=60)
        else:
            ended = run(*overrides, run_dir, *words)
            assert ended.returncode == 0, ended.stdout + ended.stderr
    found = metrics(tmp_path / "run")
    assert len(found) == len(expected)
    for line, wanted in zip(found, expected, strict=True):
        assert line["data/key_checksum"] == wanted["data/key_checksum"]
        assert line["train/loss"] == pytest.approx(wanted["train/loss"], rel=2e-5)


def test_nonsense_on_one_rank_is_skipped_by_all_and_told(undisturbed, tmp_path, monkeypatch):
    overrides, expected = undisturbed
    run_dir = tmp_path / "run"
    ended = faulty("nan:1:5", *overrides, f"run_dir={run_dir}", monkeypatch=monkeypatch)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = metrics(run_dir)
    assert [line["train/skipped_steps"] for line in lines] == [0] * 5 + [1] * 7
    assert lines[4] == expected[4]  # before it
    assert lines[6]["train/loss"] == lines[6]["train/loss"] != expected[6]["train/loss"]
    keys = []
    for rank in range(2):
        (record,) = map(json.loads, (run_dir / "skipped" / f"rank_0000{rank}.jsonl").open())
        assert record["step"] == 6 and len(record["keys"]) == 8
        keys += record["keys"]
    assert len(set(keys)) == 16


def test_nonsense_in_a_row_goes_back_and_passes_the_data_over(undisturbed, tmp_path, monkeypatch):
    overrides, _ = undisturbed
    run_dir = tmp_path / "run"
    words = [*overrides, f"run_dir={run_dir}", "health.max_skipped_in_a_row=3"]
    ended = faulty("nan:0:6-8", *words, monkeypatch=monkeypatch)
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0, told
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # 9 steps were taken when the run went back to step 5
    seen = [line["train/samples_seen"] // 16 for line in lines]
    assert seen == [1, 2, 3, 4, 5, *range(10, 17)]
    assert lines[-1]["train/rollbacks"] == 1
    assert re.search(r"back to .*step 5", told), told


def test_nonsense_for_ever_ends_the_run(undisturbed, tmp_path, monkeypatch):
    overrides, _ = undisturbed
    words = [*overrides, f"run_dir={tmp_path / 'run'}", "health.max_skipped_in_a_row=2"]
    words += ["health.max_rollbacks=1"]
    ended = faulty("nan:0:6-99", *words, monkeypatch=monkeypatch)
    assert ended.returncode not in (0, 75), ended.stdout
    assert "train.lr" in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_a_rank_that_hangs_ends_the_run_with_everyones_stacks(undisturbed, tmp_path, monkeypatch):
    overrides, _ = undisturbed
    run_dir = tmp_path / "run"
    words = [*overrides, f"run_dir={run_dir}", "health.stall_minutes=0.25"]
    ended = faulty("stuck:1:7", *words, monkeypatch=monkeypatch)
    assert ended.returncode not in (0, 75), ended.stdout
    stacks = {path.name: path.read_text() for path in (run_dir / "stacks").iterdir()}
    assert len(stacks) == 2, stacks.keys()
    assert "faulty_train.py" in stacks["rank_00001_step_7.txt"]
    assert (
        "wait" in stacks["rank_00000_step_7.txt"] or "backward" in stacks["rank_00000_step_7.txt"]
    )

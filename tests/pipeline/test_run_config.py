"""What a run's folder may lack or hold, and what a start says to it; nothing is changed by that."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.ground.lock import take
from pipeline.config import ConfigError, TrainJob
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import load_job
from pipeline.config.frozen import load_frozen, to_yaml
from pipeline.config.run_config import (
    Remains,
    commit_config,
    last_logged_step,
    lock_run,
    refuse_misfit,
    write_submitted,
)
from pipeline.config.run_files import newer_config

TEXT = to_yaml(TrainJob())


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "manifest.json").write_text("{}")
    manifest = f"data.manifest={tmp_path / 'manifest.json'}"
    return ["experiment=tiny", manifest, f"run_dir={tmp_path / 'run'}"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def began(words: list[str], *steps: int) -> TrainJob:
    """A run that wrote its configuration, and checkpoints of these steps with their copies."""
    job = load_job(words)
    run_dir = Path(job.run_dir)
    commit_config(job, begins=True)
    for step in steps:
        folder = run_dir / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        shutil.copy(run_dir / "config.yaml", folder)
        (run_dir / "last_checkpoint").write_text(f"{folder.name}\n")
    return job


def log_steps(run_dir: Path, *steps: int) -> None:
    text = "".join(json.dumps({"step": step}) + "\n" for step in steps)
    (run_dir / "metrics.jsonl").write_text(text)


def content(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def refusal(job: TrainJob) -> str:
    before = content(Path(job.run_dir))
    with pytest.raises(ConfigError) as refused:
        refuse_misfit(job)
    assert content(Path(job.run_dir)) == before
    return str(refused.value)


def test_a_folder_without_a_checkpoint_refuses_nothing(words: list[str], run_dir: Path) -> None:
    began(words)
    log_steps(run_dir, 1, 2)  # killed before its first checkpoint
    other = load_job([*words, "train.lr=0.5", "train.seed=4", "model=vit_b_32"])
    refuse_misfit(other)
    commit_config(other, begins=True)
    assert load_frozen(run_dir / "config.yaml") == other
    (run_dir / "config.yaml").write_text("run_dir: {")
    refuse_misfit(other)


def test_a_first_command_begins_anew_where_no_checkpoint_is(
    words: list[str], run_dir: Path
) -> None:
    began([*words, "train.lr=0.5"])
    job = job_of_arguments([words[1], words[2]])  # single values all, as of a resumed run
    assert job.train.lr == TrainJob().train.lr
    assert job_of_arguments([words[2]]).train.lr == 0.5
    (run_dir / "checkpoints" / "step_00000005").mkdir(parents=True)
    assert job_of_arguments([words[1], words[2]]).train.lr == 0.5


def test_checkpoints_without_a_configuration(words: list[str], run_dir: Path) -> None:
    job = began(words, 5, 10)
    (run_dir / "config.yaml").unlink()
    told = refusal(load_job([*words, "train.lr=0.5"]))
    assert "has checkpoints, the newest of step 10, but no config.yaml" in told
    with pytest.raises(ConfigError, match="the newest of step 10, but no config.yaml"):
        job_of_arguments([words[2]])
    command = told.rpartition("has a copy: ")[2]
    assert command.startswith(f"cp {run_dir}/checkpoints/step_00000010/config.yaml ")
    assert os.system(command) == 0
    refuse_misfit(job)
    (run_dir / "config.yaml").unlink()
    for copy in (run_dir / "checkpoints").rglob("config.yaml"):  # as an earlier version left them
        copy.unlink()
    assert f"copy the config.yaml that it writes to {run_dir}/config.yaml" in refusal(job)


DAMAGE = [b"", b"\0" * 100, b"run_dir: x\nmodel: {", b"run_dir: \xe9\n", b"- a\n", b"hello\n"]


@pytest.mark.parametrize("damaged", DAMAGE)
def test_a_damaged_configuration_is_named_with_the_copy(
    damaged: bytes, words: list[str], run_dir: Path
) -> None:
    job = began(words, 5)
    (run_dir / "config.yaml").write_bytes(damaged)
    with pytest.raises(ConfigError) as read:
        job_of_arguments([words[2]])
    for told in (str(read.value), refusal(job)):
        assert told.startswith(f"{run_dir}/config.yaml ") and "Traceback" not in told
        assert told.endswith(
            f"cp {run_dir}/checkpoints/step_00000005/config.yaml {run_dir}/config.yaml"
        )


@settings(max_examples=60)
@given(st.integers(0, len(TEXT)))
@example(TEXT.index("cluster:"))
@example(TEXT.index("eval:"))
@example(len(TEXT) - 1)
@example(len(TEXT) - 4)
def test_a_configuration_cut_off_anywhere_is_whole_or_refused(length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(TEXT[:length])
        try:
            assert load_frozen(path) == TrainJob()
        except ConfigError as error:
            assert str(path) in str(error)


def test_checkpoints_that_are_gone(words: list[str], run_dir: Path) -> None:
    job = began(words, 7)
    shutil.rmtree(run_dir / "checkpoints")
    told = refusal(job)
    assert f"this run has saved checkpoints (seen by {run_dir}/last_checkpoint)" in told
    assert "put them back, or begin anew from step 0 with another run_dir" in told
    (run_dir / "checkpoints" / ".step_00000010.tmp").mkdir(parents=True)  # was being written
    assert "last_checkpoint" in refusal(load_job([*words, "train.lr=0.5"]))
    (run_dir / "config.yaml").unlink()
    assert "last_checkpoint" in refusal(job)
    (run_dir / "last_checkpoint").unlink()
    refuse_misfit(job)


def test_checkpoints_that_are_gone_and_may_be_in_other_storage(
    words: list[str], run_dir: Path
) -> None:
    """Whoever loads them looks there first."""
    began(words, 7)
    shutil.rmtree(run_dir / "checkpoints")
    refuse_misfit(load_job([*words, "checkpoint.remote=s3://bucket/mine"]))


def test_checkpoints_that_are_gone_of_a_run_of_an_earlier_version(
    words: list[str], run_dir: Path
) -> None:
    job = began(words)
    (run_dir / "last_checkpoint").unlink()
    log_steps(run_dir, 1, job.checkpoint.every_steps)
    refuse_misfit(job)  # killed before or while the first was written
    log_steps(run_dir, 1, job.checkpoint.every_steps + 1)
    assert f"seen by {run_dir}/metrics.jsonl" in refusal(job)
    (run_dir / "checkpoints" / ".step_00000005.tmp").mkdir(parents=True)
    refuse_misfit(job)
    shutil.rmtree(run_dir / "checkpoints")
    log_steps(run_dir)
    (run_dir / "eval").mkdir()
    (run_dir / "eval" / f"step_{job.train.steps:08d}.json").write_text("{}")
    assert f"seen by {run_dir}/eval" in refusal(job)


def test_the_newest_checkpoint_alone_is_gone(words: list[str], run_dir: Path) -> None:
    job = began(words, 5, 10)
    assert Remains.of(job).gone is None
    shutil.rmtree(run_dir / "checkpoints" / "step_00000010")
    refuse_misfit(job)
    assert Remains.of(job).gone == "step_00000010"


def test_what_only_another_version_knows_is_named(words: list[str], run_dir: Path) -> None:
    began(words, 5)
    with (run_dir / "config.yaml").open("a") as file:
        file.write("colour_of_the_sky: blue\n")
    with pytest.raises(ConfigError, match=r"(?s)colour_of_the_sky.*take the line out"):
        job_of_arguments([words[2]])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/config.yaml: no such file"):
        load_frozen(tmp_path / "config.yaml")


def test_a_checkpoint_that_was_being_replaced_is_one(words: list[str], run_dir: Path) -> None:
    job = began(words, 7)
    checkpoints = run_dir / "checkpoints"
    (checkpoints / "step_00000007").rename(checkpoints / ".step_00000007.replaced.tmp")
    refuse_misfit(job)
    assert "holds a run of another configuration" in refusal(load_job([*words, "train.lr=0.5"]))


def test_steps_are_read_past_lines_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_logged_step(path) == 0
    path.write_bytes(b'{"step": 3}\n\xff\n[]\n{"step": "x"}\n{"step": 12, "a": NaN}\n{"st')
    assert last_logged_step(path) == 12


def test_force_may_be_given_again_and_for_data_that_changed(
    words: list[str], run_dir: Path
) -> None:
    began(words, 5)
    changed = load_job([*words, "train.lr=0.5", "force=[train.lr]"])
    refuse_misfit(changed)
    commit_config(changed, begins=False)
    refuse_misfit(load_frozen(run_dir / "config.yaml"))  # as a requeued job starts
    refuse_misfit(changed)
    refuse_misfit(job_of_arguments([words[2], "force=[data.manifest]"]))
    assert "names train.seed, which is 0" in refusal(
        job_of_arguments([words[2], "force=[train.seed]"])
    )


def test_the_newer_of_what_is_submitted_and_the_run_s_own(words: list[str], run_dir: Path) -> None:
    job = began(words)
    os.utime(run_dir / "config.yaml", (1, 1))
    submitted = load_job([*words, "cluster.nodes=4", "cluster.ranks_per_node=4"])
    write_submitted(submitted)
    assert job_of_arguments([words[2]], newer_config) == submitted
    assert job_of_arguments([words[2]]) == job
    commit_config(submitted, begins=False)
    assert not (run_dir / "config.submitted.yaml").exists()
    assert job_of_arguments([words[2]]) == submitted
    write_submitted(job)
    os.utime(run_dir / "config.submitted.yaml", (1, 1))  # a start came in between
    assert job_of_arguments([words[2]], newer_config) == submitted


def test_a_held_run_and_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with take(tmp_path / ".lock"), pytest.raises(ConfigError) as held:
        lock_run(tmp_path)
    told = str(held.value)
    assert told.startswith(f"run_dir = {tmp_path}: this run is being trained already (process ")
    assert str(os.getpid()) in told and "stop it, or give another run_dir" in told
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "Not there")))
    with pytest.raises(ConfigError, match="run_dir = .*gives no locks .*may be a link"):
        lock_run(tmp_path)

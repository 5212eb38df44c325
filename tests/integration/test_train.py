"""Training end to end: two real ranks through DeepSpeed, on shards that the test wrote."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from data_tools.ground.settings import parse
from pipeline.config import Stem, TrainJob
from pipeline.export.__main__ import COMMAND, ExportSettings
from pipeline.train import next_steps
from tests.integration.runs import metrics, run, tiny_shards


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("train")
    manifest = tiny_shards(folder / "data")
    ended = run(
        "experiment=tiny",
        f"data.manifest={manifest}",
        f"run_dir={folder / 'run'}",
        "logging.wandb_mode=auto",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run", ended.stdout + ended.stderr


def test_the_loss_falls(trained: tuple[Path, str]) -> None:
    losses = [line["train/loss"] for line in metrics(trained[0])]
    assert len(losses) == 20
    assert min(losses[-3:]) < losses[0]


def test_every_line_tells_what_a_reader_watches(trained: tuple[Path, str]) -> None:
    for number, text in enumerate((trained[0] / "metrics.jsonl").read_text().splitlines()):
        line = json.loads(text)
        assert line["step"] == number + 1
        assert line["train/samples_seen"] == 16 * (number + 1)
        for key in (
            "train/logit_scale",
            "train/grad_norm",
            "train/lr",
            "perf/samples_per_second",
            "data/wait_s",
        ):
            assert line[key] > 0, key
        assert line["train/skipped_steps"] == 0


def test_the_run_directory_is_complete(trained: tuple[Path, str]) -> None:
    run_dir = trained[0]
    assert (run_dir / "config.yaml").exists()
    environment = json.loads((run_dir / "env.json").read_text())
    assert environment["world_size"] == 2 and environment["packages"]["torch"].startswith("2.13")
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == ["latest", "step_00000015", "step_00000020"]  # checkpoint.kept is 2


def test_wandb_is_offline_without_a_key(trained: tuple[Path, str]) -> None:
    run_id = (trained[0] / "wandb_id").read_text()
    records = list((trained[0] / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(records) == 1 and records[0].stat().st_size > 1000


def test_no_op_is_compiled(trained: tuple[Path, str]) -> None:
    """DeepSpeed's shared-memory op takes 100 s to compile, and a killed build hangs later
    starts."""
    assert "ninja" not in trained[1].lower() and "shm_comm" not in trained[1]


def test_the_output_is_what_a_person_wants_to_read(trained: tuple[Path, str]) -> None:
    assert "Traceback" not in trained[1] and "Warning" not in trained[1], trained[1]
    assert "step 20/20" in trained[1]
    assert f"starting 2 ranks of pipeline.train, run_dir {trained[0]}" in trained[1]


def test_the_end_names_what_to_open_and_what_to_try_next(trained: tuple[Path, str]) -> None:
    run_dir, output = trained
    assert f"open: {run_dir / 'metrics.jsonl'}\n" in output  # without evaluation sets no report
    command = f"python -m pipeline.export run_dir={run_dir} out={run_dir / 'exported'}"
    assert f"try next: {command} format=huggingface\n" in output


def test_what_to_open_is_the_report_where_there_is_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    (run_dir / "report.html").touch()
    config = TrainJob(run_dir=str(run_dir))
    for stem, form in ((Stem.patch, "huggingface"), (Stem.conv, "native")):
        config.model.vision.stem = stem
        first, second = next_steps(config).splitlines()
        assert first == f"open: {run_dir / 'report.html'}"
        words = shlex.split(second.removeprefix("try next: python -m pipeline.export "))
        settings, rest = parse(COMMAND, words)
        assert rest == [] and settings == ExportSettings(
            run_dir=run_dir, out=run_dir / "exported", format=form
        )


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.slow
def test_other_zero_stages_have_the_same_losses(
    trained: tuple[Path, str], tmp_path: Path, stage: int
) -> None:
    manifest = trained[0].parent / "data" / "manifest.json"
    ended = run(
        "experiment=tiny",
        f"data.manifest={manifest}",
        f"run_dir={tmp_path / 'run'}",
        f"deepspeed.zero_stage={stage}",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    losses = [line["train/loss"] for line in metrics(tmp_path / "run")]
    expected = [line["train/loss"] for line in metrics(trained[0])]
    assert losses == pytest.approx(expected, rel=2e-5)

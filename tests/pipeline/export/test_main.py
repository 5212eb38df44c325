"""The command: what it refuses, and a run directory to a folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import TrainJob
from pipeline.config.frozen import to_yaml
from pipeline.export.__main__ import main
from tests.pipeline.engine.checkpoint.sharded import write_checkpoint
from tests.pipeline.model.model_configs import small_clip, small_config


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], ["run_dir is not given", "out is not given", "format is not given"]),
        (
            ["run_dir=a", "out=b", "format=onnx"],
            ["format=onnx: give one of huggingface, open_clip"],
        ),
        (
            ["run_dir=a", "out=b", "format=native", "steps=3"],
            ["steps=3: there is no setting steps", "do you mean step?"],
        ),
        (["run_dir=a", "out=b", "format=native", "step=last"], ["step=last: give a whole number"]),
        (["run_dir=a", "out=b", "format=native", "ema=no"], ["ema=no: give true or false"]),
        (["run_dir=nowhere", "out=b", "format=native"], ["nowhere/config.yaml"]),
    ],
)
def test_refusals_name_the_word_and_the_fix(capsys, arguments, told):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told), error
    assert "Traceback" not in error


@pytest.fixture
def run_dir(tmp_path):
    job = TrainJob(run_dir=str(tmp_path / "run"), model=small_config())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(job))
    return tmp_path / "run"


def test_a_run_without_checkpoint_is_refused(run_dir, tmp_path, capsys):
    assert main([f"run_dir={run_dir}", f"out={tmp_path / 'out'}", "format=native"]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_with_two_means_is_told(tmp_path, capsys):
    config = small_config()
    config.image_mean = [0.45, 0.5]
    (tmp_path / "run").mkdir()
    job = TrainJob(run_dir=str(tmp_path / "run"), model=config)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(job))
    write_checkpoint(tmp_path / "run", 30, weights_of(1))
    assert main([f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "format=native"]) == 1
    error = capsys.readouterr().err
    assert "image_mean=[0.45, 0.5]" in error and "three numbers" in error
    assert "Traceback" not in error and not (tmp_path / "out").exists()


def weights_of(seed):
    torch.manual_seed(seed)
    return {
        name: torch.randn_like(value) if value.ndim else value
        for name, value in small_clip(small_config()).state_dict().items()
    }


def test_a_run_becomes_a_folder(run_dir, tmp_path, capsys):
    write_checkpoint(run_dir, 30, weights_of(1))
    write_checkpoint(run_dir, 40, weights_of(2))
    out = tmp_path / "out"
    assert main([f"run_dir={run_dir}", f"out={out}", "format=native", "step=30"]) == 0
    assert "read back bit by bit" in capsys.readouterr().out
    found = load_file(str(out / "model.safetensors"))
    assert torch.equal(found["visual.projection.weight"], weights_of(1)["visual.projection.weight"])


@pytest.mark.parametrize(("word", "seed"), [([], 2), (["ema=true"], 2), (["ema=false"], 1)])
def test_the_average_of_the_weights_is_exported_unless_told_otherwise(
    run_dir, tmp_path, word, seed
):
    write_checkpoint(run_dir, 30, weights_of(1), average=weights_of(2))
    out = tmp_path / "out"
    assert main([f"run_dir={run_dir}", f"out={out}", "format=native", *word]) == 0
    found = load_file(str(out / "model.safetensors"))
    assert torch.equal(
        found["visual.projection.weight"], weights_of(seed)["visual.projection.weight"]
    )
    if seed == 1:
        write_checkpoint(run_dir, 40, weights_of(1))
        assert main([f"run_dir={run_dir}", f"out={out}2", "format=native", "ema=true"]) == 1


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("there", "exists; name a new folder"),
        ("there/file/out", "there/file is no folder"),
        ("/proc/nowhere/out", "/proc cannot be written to"),
        ("s3://bucket/out", "is a URL; name a folder of this machine"),
        ("~/out", "the shell left ~ as it is; give "),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    run_dir, tmp_path, monkeypatch, capsys, out, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    assert main([f"run_dir={run_dir}", f"out={out}", "format=native"]) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


@pytest.mark.parametrize("context_length", [3, 4, 6])
@pytest.mark.parametrize("format", ["huggingface", "open_clip", "native"])
def test_the_shortest_contexts_are_exported_in_every_format(
    tmp_path, capsys, context_length, format
):
    text = replace(small_config().text, context_length=context_length)
    config = replace(small_config(), text=text)
    weights = dict(small_clip(config).state_dict())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(TrainJob(run_dir=str(folder), model=config)))
    write_checkpoint(folder, 7, weights)
    words = [f"run_dir={folder}", f"out={tmp_path / 'out'}", f"format={format}"]
    assert main(words) == 0, capsys.readouterr().err


def test_statistics_of_two_channels_are_told(run_dir, tmp_path, capsys):
    config = replace(small_config(), image_mean=[0.5, 0.5])
    (run_dir / "config.yaml").write_text(to_yaml(TrainJob(run_dir=str(run_dir), model=config)))
    write_checkpoint(run_dir, 40, weights_of(2))
    assert main([f"run_dir={run_dir}", f"out={tmp_path / 'out'}", "format=native"]) == 1
    assert "model.image_mean=[0.5, 0.5]" in capsys.readouterr().err

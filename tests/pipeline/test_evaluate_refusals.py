"""What an evaluation refuses before a rank starts, each with the words to give; and what of
training it does not ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.ground import exit_codes
from pipeline import launch_evaluation
from pipeline.config.composition import load_job
from pipeline.config.evaluation import evaluation_of_arguments
from pipeline.config.frozen import to_yaml


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of the tiny model with checkpoints of steps 6 and 12, whose shards are gone."""
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    for above in ("sets", "more"):
        (tmp_path / above / "birds" / "test").mkdir(parents=True)
        (tmp_path / above / "birds" / "test" / "nshards.txt").write_text("1")
    folder = tmp_path / "runs" / "mine"
    job = load_job(
        [
            "experiment=tiny",
            f"data.manifest={manifest}",
            f"run_dir={folder}",
            f"eval.datasets=[{tmp_path / 'sets' / 'birds'}]",
            "eval.batch_size=7",
        ]
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(job))
    for step in (6, 12):
        kinds = ["weight", "ema"] if step == 12 else ["weight"]
        path = folder / "checkpoints" / f"step_{step:08d}"
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"parameters": [["logit_scale", [1], kinds]]}))
    manifest.unlink()
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    def rank_main(*_: object) -> None:
        raise AssertionError("nothing is to be started")

    assert launch_evaluation.main(rank_main, list(words)) == exit_codes.REFUSED
    return capsys.readouterr().err


def test_nothing_of_training_is_asked_for(run_dir: Path) -> None:
    words = [f"run_dir={run_dir}", "cluster.ranks_per_node=5", "train.steps=3", "eval.batch_size=2"]
    job, unused = evaluation_of_arguments(words, 6, None)
    assert (job.cluster.ranks_per_node, job.eval.batch_size) == (5, 2)
    assert [Path(folder).name for folder in job.eval.datasets] == ["birds"]
    assert unused == ["train.steps"]
    _, unused = evaluation_of_arguments([f"run_dir={run_dir}", "data.manifest=gone"], 12, True)
    assert unused == ["data.manifest"]


def test_the_words_of_the_training_mean_that_run(run_dir: Path) -> None:
    words = ["experiment=tiny", f"run_dir={run_dir}", "data.manifest=gone"]
    job, unused = evaluation_of_arguments(words, None, None)
    assert job.model.name == "tiny" and unused == []
    assert [Path(folder).name for folder in job.eval.datasets] == ["birds"]  # the run's own
    other = run_dir.parents[1] / "more" / "birds"
    job, _ = evaluation_of_arguments([*words, f"eval.datasets=[{other}]"], None, None)
    assert job.eval.datasets == [str(other)]


def test_a_run_that_was_moved(run_dir: Path, tmp_path: Path) -> None:
    moved = run_dir.rename(tmp_path / "elsewhere")
    job, _ = evaluation_of_arguments([f"run_dir={moved}"], None, None)
    assert job.run_dir == str(moved)


def test_a_step_that_is_not_there(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, f"run_dir={run_dir}", "step=7", "eval.batch_size=0")
    assert "step = 7" in told and "no checkpoint of this step; there is: 6, 12" in told
    assert "eval.batch_size = 0" in told  # everything at once
    assert "step=-1: give" in refused(capsys, f"run_dir={run_dir}", "step=-1")
    assert "step=new" in refused(capsys, f"run_dir={run_dir}", "step=new")


def test_an_average_that_is_not_there(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, f"run_dir={run_dir}", "step=6", "ema=true")
    assert "ema = true" in told and "step_00000006 has no average" in told
    evaluation_of_arguments([f"run_dir={run_dir}"], None, True)  # the newest has one


def test_nothing_to_score_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, f"run_dir={run_dir}", "eval.datasets=[]")
    assert "eval.datasets is empty" in told and "give eval.datasets=[FOLDER,...]" in told


def test_sets_of_one_name_and_sets_that_are_not_there(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "sets" / "birds", f"{tmp_path}/more/birds/"
    told = refused(capsys, f"run_dir={run_dir}", f"eval.datasets=[{one},{other},gone]")
    assert f"{one} and {other} have one name, by which scores are kept (birds)" in told
    assert "gone is no folder" in told
    assert "have one name, by which scores are kept (birds)" in refused(
        capsys, f"run_dir={run_dir}", f"eval.datasets=[{one},{one}]"
    )


def test_several_nodes_are_sent_to_the_evaluation_of_slurm(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, f"run_dir={run_dir}", "cluster.nodes=4")
    assert "python -m slurm.submit --evaluate" in told and "cluster.nodes=1" in told


def test_another_model_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, f"run_dir={run_dir}", "model.embed_dim=32")
    assert "model.embed_dim = 32: the weights are of a model with 64" in told
    assert "model.embed_dim" in refused(capsys, "experiment=vit_b_32", f"run_dir={run_dir}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nothing", "no checkpoint yet; train first"),
        ("config.yaml", "no checkpoint yet; train first"),
        ("model_config.json", "is an exported model, not a run"),
        ("open_clip_config.json", "is an exported model, not a run"),
        ("notes.txt", "holds no run (config.yaml and checkpoints/ are missing)"),
        ("a file", "is a file; name the folder of a run"),
    ],
)
def test_a_folder_that_is_no_run(
    content: str, words: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    if content == "a file":
        folder.write_text("")
    elif content != "nothing":
        folder.mkdir()
        text = (run_dir / "config.yaml").read_text() if content == "config.yaml" else "{}"
        (folder / content).write_text(text)
    assert words in refused(capsys, f"run_dir={folder}")


def test_the_inside_of_a_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = run_dir / "checkpoints" / "step_00000012"
    assert f"name the run's own folder, {run_dir}" in refused(capsys, f"run_dir={inside}")


def test_a_run_without_its_configuration(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "config.yaml").unlink()
    told = refused(capsys, f"run_dir={run_dir}")
    assert "config.yaml is missing" in told and "put it back from a copy" in told


def test_no_run_dir(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run_dir is not given" in refused(capsys, "eval.batch_size=3")
    assert "run_dir is not given" in refused(capsys, "experiment=tiny")

"""What a run may go on with, and that every way out that a refusal names is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_tools.ground.fields import fixed_names
from pipeline.config import ConfigError, TrainJob
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import load_job
from pipeline.config.frozen import to_yaml
from tests.pipeline.begun_runs import begin


@pytest.fixture
def run(tmp_path: Path) -> str:
    """`run_dir=...` of a run of 20 steps that has done 12."""
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"num_samples": 90}))
    words = ["experiment=tiny", f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]
    begin(load_job(words), step=12)
    return words[-1]


def folder(run: str) -> Path:
    return Path(run.partition("=")[2])


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        begin(job_of_arguments(list(words)))
    return str(refused.value)


def test_fewer_steps_than_done_are_refused_with_what_is_taken(run: str) -> None:
    told = refusal(run, "train.steps=11", "force=[train.steps]")
    assert "train.steps = 11: the run has done 12 steps already; leave it out" in told
    assert "(the run has train.steps = 20), or give more than 20 with force=[train.steps]" in told
    assert job_of_arguments([run]).train.steps == 20
    begin(job_of_arguments([run, "train.steps=21", "force=[train.steps]"]))
    assert job_of_arguments([run]).train.steps == 21


def test_fewer_steps_in_the_whole_command_line_are_refused_too(run: str) -> None:
    manifest = folder(run).parent / "manifest.json"
    words = ["experiment=tiny", f"data.manifest={manifest}", run, "train.steps=5"]
    assert "the run has done 12 steps already" in refusal(*words, "force=[train.steps]")


def test_a_folder_that_was_left_with_fewer_steps_than_done_has_a_way_on(run: str) -> None:
    job = job_of_arguments([run])
    job.train.steps = 7
    (folder(run) / "config.yaml").write_text(to_yaml(job))
    told = refusal(run)
    assert "train.steps = 7: the run has done 12 steps already; give train.steps=12" in told
    begin(job_of_arguments([run, *re.findall(r"train.steps=\d+|force=\S+]", told)]))
    assert job_of_arguments([run]).train.steps == 12


@pytest.mark.parametrize("ranks", [3, 5, 7, 11])
def test_ranks_that_do_not_share_the_batch_are_told_those_that_do(run: str, ranks: int) -> None:
    told = refusal(run, f"cluster.ranks_per_node={ranks}")
    assert "and a run keeps its global batch; give cluster.ranks_per_node=" in told
    assert "train.global_batch_size=" not in told
    for offer in re.findall(r"cluster.ranks_per_node=\d+", told.rpartition("; give ")[2]):
        begin(job_of_arguments([run, offer]))


def test_nodes_that_no_ranks_suit_are_told_the_run_s_own(run: str) -> None:
    told = refusal(run, "cluster.nodes=3")
    assert told.endswith("give cluster.nodes=1 cluster.ranks_per_node=2 as before")
    begin(job_of_arguments([run, "cluster.nodes=1", "cluster.ranks_per_node=2"]))


@pytest.mark.parametrize(
    ("word", "own"),
    [
        ("train.global_batch_size=32", "16"),
        ("train.global_batch_size=8", "16"),
        ("model.vision.num_layers=3", "2"),
        ("model.text.num_heads=4", "2"),
        ("model.embed_dim=32", "64"),
        ("loss.kind=sigmoid", '"clip"'),
    ],
)
def test_what_cannot_change_is_not_offered_to_force(run: str, word: str, own: str) -> None:
    name = word.partition("=")[0]
    told = refusal(run, word)
    assert f"; {name} stays {own} in this run: " in told and "force=" not in told
    told = refusal(run, word, f"force=[{name}]")
    assert f"force names {name}, which cannot change in a run: " in told
    begin(job_of_arguments([run]))


def test_a_frozen_tower_cannot_be_trained_later_but_a_trained_one_can_be_frozen(run: str) -> None:
    begin(job_of_arguments([run, "train.text_lr_scale=0", "force=[train.text_lr_scale]"]))
    told = refusal(run, "train.text_lr_scale=1")
    assert "train.text_lr_scale stays 0.0 in this run" in told and "force=" not in told


def test_force_may_name_the_data_where_only_its_content_differs(run: str) -> None:
    job = job_of_arguments([run, "force=[data.manifest]"])
    begin(job)
    assert job.force == ["data.manifest"]


def test_what_cannot_change_is_a_field(tmp_path: Path) -> None:
    names = fixed_names(TrainJob())
    assert "train.global_batch_size" in names and "model.vision.width" in names
    assert all(reason for reason in names.values())
    assert not any(name.startswith(("cluster.", "eval.", "logging.")) for name in names)

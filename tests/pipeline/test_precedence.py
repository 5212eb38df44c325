"""Which of command line, group and experiment wins: the command line, in either order."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.config import ClusterConfig, ModelConfig
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import CONF_DIR, CONFIGURATION, load_cluster, load_job
from tests.pipeline.begun_runs import begin

EXPERIMENTS = CONFIGURATION.groups["experiment"]
SCHEMAS = {"cluster": ClusterConfig, "model": ModelConfig}


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    return [f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}", "eval.datasets=[]"]


def test_every_group_beside_the_experiments_is_tried_here() -> None:
    assert set(CONFIGURATION.groups) == {*SCHEMAS, "experiment"}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in SCHEMAS for choice in CONFIGURATION.groups[group]],
)
def test_a_group_that_is_chosen_is_that_group_whatever_the_experiment_sets(
    group: str, choice: str, experiment: str, given: list[str]
) -> None:
    file = OmegaConf.load(CONF_DIR / group / f"{choice}.yaml")
    expected = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SCHEMAS[group]), file))
    words = [f"{group}={choice}", f"experiment={experiment}"]
    for order in itertools.permutations(words):
        job = load_job([*order, *given, "train.global_batch_size=960"])
        assert getattr(job, group) == expected
    assert job.train.precision == load_job([f"experiment={experiment}", *given]).train.precision


def test_single_values_win_over_both(given: list[str]) -> None:
    words = ["cluster.ranks_per_node=4", "cluster=one_node", "experiment=tiny", *given]
    for order in (words, words[::-1]):
        job = load_job(order)
        assert (job.cluster.ranks_per_node, job.cluster.gpus_per_node) == (4, 8)
    assert load_cluster(words).ranks_per_node == 4


def test_an_experiment_alone_sets_what_it_sets(given: list[str]) -> None:
    assert load_job(["experiment=demo", *given]).cluster.ranks_per_node == 2
    assert load_job(["experiment=demo", *given]).model.name == "demo"


def test_a_run_goes_on_with_another_cluster(given: list[str]) -> None:
    started = load_job(["experiment=tiny", *given, "train.lr=0.007"])
    begin(started)
    run_dir = f"run_dir={started.run_dir}"
    job = job_of_arguments(["cluster.nodes=2", "cluster=one_node", run_dir])
    assert (job.cluster.nodes, job.cluster.ranks_per_node, job.train.lr) == (2, 8, 0.007)
    assert job.cluster.timeout_minutes == ClusterConfig().timeout_minutes

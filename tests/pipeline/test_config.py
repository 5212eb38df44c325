"""Composition, validation and freezing of the training job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import (
    CONF_DIR,
    ConfigError,
    TrainJob,
    composition,
    freeze,
    job_of_arguments,
    load_frozen,
    load_job,
    validate,
)

EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The two values that every job must be given."""
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    return [f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]


@pytest.mark.parametrize("group", ["model", "cluster"])
def test_every_group_file_composes_and_validates(group: str, given: list[str]) -> None:
    choices = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    assert choices
    for choice in choices:
        assert isinstance(
            load_job([f"{group}={choice}", *given, "train.global_batch_size=960"]), TrainJob
        )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_validates(experiment: str, given: list[str]) -> None:
    job = load_job([f"experiment={experiment}", *given, "eval.datasets=[]"])
    assert validate(job) == []


def test_a_misspelt_key_is_refused_by_name(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="warmup_step"):
        load_job([*given, "train.warmup_step=3"])


def test_a_wrong_type_is_refused_by_name_and_value(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)train\.steps.*'many'"):
        load_job([*given, "train.steps=many"])


def test_an_unknown_choice_lists_the_choices(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)vit_z.*vit_b_32"):
        load_job([*given, "model=vit_z"])


def test_a_misspelt_key_in_a_group_file_is_refused(
    given: list[str], tmp_path: Path, monkeypatch
) -> None:
    copy = tmp_path / "conf"
    for file in CONF_DIR.rglob("*.yaml"):
        target = copy / file.relative_to(CONF_DIR)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    (copy / "model" / "typo.yaml").write_text("embed_dims: 5\n")
    monkeypatch.setattr(composition, "CONF_DIR", copy)
    with pytest.raises(ConfigError, match="embed_dims"):
        load_job([*given, "model=typo"])


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_job(
            [
                "train.global_batch_size=100",
                "cluster.ranks_per_node=3",
                "train.steps=10",
                "train.warmup_steps=10",
                "deepspeed.zero_stage=0",
                "model.image_size=225",
                "data.manifest=/nowhere/manifest.json",
                "data.crop_scale_min=1.5",
            ]
        )
    told = str(refused.value)
    for part in (
        "run_dir is not given: add run_dir=",
        "train.global_batch_size = 100: is not divisible by 3 ranks",
        "give 99 or 102",
        "train.warmup_steps = 10",
        "deepspeed.zero_stage = 0",
        "model.image_size = 225",
        "data.manifest = /nowhere/manifest.json: no such file",
        "data.crop_scale_min = 1.5",
    ):
        assert part in told


def test_frozen_config_is_read_back_equal(given: list[str]) -> None:
    job = load_job(["experiment=tiny", *given, "train.lr=0.00123"])
    assert load_frozen(freeze(job)) == job


def test_a_typo_in_a_frozen_config_is_refused(given: list[str]) -> None:
    path = freeze(load_job(["experiment=tiny", *given]))
    path.write_text(path.read_text().replace("zero_stage", "zero_stge"))
    with pytest.raises(ConfigError, match="zero_stge"):
        load_frozen(path)


def test_naming_the_run_directory_resumes_its_configuration(given: list[str]) -> None:
    job = load_job(["experiment=tiny", *given, "train.lr=0.00123"])
    freeze(job)
    assert job_of_arguments([f"run_dir={job.run_dir}"]) == job


def test_another_configuration_in_the_run_directory_is_refused_with_the_difference(
    given: list[str],
) -> None:
    freeze(load_job(["experiment=tiny", *given]))
    with pytest.raises(ConfigError, match=r"(?s)-  lr: 0.001.*\+  lr: 0.5"):
        freeze(load_job(["experiment=tiny", *given, "train.lr=0.5"]))
    freeze(
        load_job(
            [
                "experiment=tiny",
                *given,
                "logging.every_steps=3",
                "data.num_workers=7",
                "data.prefetch_batches=9",
            ]
        )
    )  # what it prints and how fast it reads


def test_resuming_with_other_ranks_is_refused(given: list[str]) -> None:
    freeze(load_job(["experiment=tiny", *given]))
    with pytest.raises(ConfigError, match="4: the run in .* has 2 ranks"):
        freeze(load_job(["experiment=tiny", *given, "cluster.ranks_per_node=4"]))


def test_composing_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        "import pipeline.config, pipeline.launch"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

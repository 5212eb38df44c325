"""What a job can be wrong about: each problem by its field, its value and a fix that works."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError, SourceConfig, TrainJob
from pipeline.config.composition import load_job
from pipeline.config.frozen import OFF_BEFORE_NULL
from pipeline.config.validation import validate
from pipeline.config.validation.numbers import nearest_divisors


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    (tmp_path / "manifest.json").write_text("{}")
    return load_job([f"data.manifest={tmp_path}/manifest.json", f"run_dir={tmp_path / 'run'}"])


def told(job: TrainJob, **values: Any) -> list[str]:
    """Problems of `job` with values at dotted fields, written with __ for the dot."""
    for name, value in values.items():
        *path, last = name.split("__")
        target: Any = job
        for part in path:
            target = getattr(target, part)
        kind = type(getattr(target, last))
        setattr(target, last, kind[value] if hasattr(kind, "__members__") else value)
    return validate(job)


def test_the_job_of_these_tests_is_valid(job: TrainJob) -> None:
    assert validate(job) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train__ema_decay", 1.0),
        ("train__ema_decay", -0.1),
        ("model__dropout", 1.0),
        ("model__vision__patch_dropout", 1.0),
        ("train__beta1", 1.0),
        ("train__beta2", math.nan),
        ("train__layer_decay", 0.0),
        ("train__layer_decay", 1.01),
        ("train__layer_decay", math.nan),
        ("train__lr", math.nan),
        ("train__lr", math.inf),
        ("train__lr", 0.0),
        ("train__weight_decay", -0.1),
        ("train__image_lr_scale", -1.0),
        ("train__text_lr_scale", math.nan),
        ("health__loss_spike", 1.0),
        ("health__loss_spike", -1.0),
        ("health__max_rollbacks", -1),
        ("deepspeed__reduce_bucket_size", 0),
        ("deepspeed__zero_stage", 0),
        ("model__vision__num_heads", 0),
        ("model__vision__patch_size", 0),
        ("model__text__num_layers", 0),
        ("train__cooldown_steps", 10),  # of schedule=cosine
    ],
)
def test_one_wrong_value_makes_one_problem_that_names_it(
    job: TrainJob, field: str, value: float
) -> None:
    (problem,) = told(job, **{field: value})
    assert problem.startswith(f"{field.replace('__', '.')} = {value}: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train__ema_decay", None),
        ("train__ema_decay", 0.9999),
        ("train__grad_clip_norm", None),
        ("model__dropout", 0.1),
        ("model__vision__patch_dropout", 0.5),
        ("data__caption_dropout", 1.0),
        ("train__layer_decay", 1.0),
        ("train__layer_decay", 0.65),
        ("health__loss_spike", None),
        ("health__loss_spike", 1.5),
        ("health__max_rollbacks", 0),
        ("train__image_lr_scale", 0.0),
        ("train__text_lr_scale", 0.0),
        ("train__image_micro_batch_size", 256),
        ("checkpoint__remote", "s3://bucket/runs/mine"),
        ("checkpoint__remote", "/elsewhere/runs"),
        ("checkpoint__remote", "memory://runs"),
    ],
)
def test_values_that_are_right_pass(job: TrainJob, field: str, value: Any) -> None:
    assert told(job, **{field: value}) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *OFF_BEFORE_NULL.items(),
        ("train.grad_clip_norm", 0.0),
    ],
)
def test_off_is_null_and_nothing_else(job: TrainJob, field: str, value: Any) -> None:
    field = field.replace(".", "__")
    (problem,) = told(job, **{field: value})
    assert problem.startswith(f"{field.replace('__', '.')} = {value!r}: ") and "; null " in problem
    assert told(job, **{field: None}) == []


def test_a_weight_in_a_mixture_has_its_bound_under_its_own_name(job: TrainJob) -> None:
    manifest, job.data.manifest = job.data.manifest, ""
    job.data.mixture = [SourceConfig(manifest=manifest), SourceConfig(manifest=manifest, weight=0)]
    (problem,) = validate(job)
    assert problem == ("data.mixture[1].weight = 0: must be > 0; leave the data set out instead")


def test_two_frozen_towers_are_refused(job: TrainJob) -> None:
    (problem,) = told(job, train__image_lr_scale=0.0, train__text_lr_scale=0.0)
    assert "both towers are frozen" in problem


@pytest.mark.parametrize("cooldown_steps", [0, 801])
def test_wsd_needs_a_cooldown_that_fits_behind_the_warmup(
    job: TrainJob, cooldown_steps: int
) -> None:
    wsd = {"train__schedule": "wsd", "train__steps": 1000, "train__warmup_steps": 200}
    (problem,) = told(job, **wsd, train__cooldown_steps=cooldown_steps)
    assert problem.startswith(f"train.cooldown_steps = {cooldown_steps}: ")
    assert "give 1 to 800" in problem
    assert told(job, **wsd, train__cooldown_steps=800) == []


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_cooldown_of_another_schedule_is_refused(job: TrainJob, schedule: str) -> None:
    (problem,) = told(job, train__schedule=schedule, train__cooldown_steps=5)
    assert f"schedule={schedule} falls" in problem and "schedule=wsd" in problem


def test_a_warmup_longer_than_training_is_refused(job: TrainJob) -> None:
    (problem,) = told(job, train__steps=100, train__warmup_steps=100)
    assert problem.startswith("train.warmup_steps = 100: ") and "train.steps = 100" in problem


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_micro_batch_that_does_not_divide_names_those_that_do(job: TrainJob, tower: str) -> None:
    job.cluster.ranks_per_node = 4
    job.train.global_batch_size = 400
    (problem,) = told(job, **{f"train__{tower}_micro_batch_size": 24})
    assert problem.startswith(f"train.{tower}_micro_batch_size = 24: does not divide the 100")
    assert "give 20 or 25, or null" in problem
    assert "cluster.ranks_per_node = 4" in problem
    (problem,) = told(job, **{f"train__{tower}_micro_batch_size": 400})
    assert "give 100, or null" in problem


@given(st.integers(1, 2000), st.integers(1, 2500))
def test_nearest_divisors_divide_and_none_is_nearer(number: int, size: int) -> None:
    if number % size == 0:
        return
    lower, *upper = nearest_divisors(number, size)
    assert lower < size and all(size < divisor for divisor in upper)
    assert len(upper) == (size < number)
    between = range(lower + 1, upper[0] if upper else size)
    assert all(number % divisor == 0 for divisor in (lower, *upper))
    assert not any(number % other == 0 for other in between)


def test_what_a_rank_takes_is_not_judged_where_ranks_do_not_share_evenly(job: TrainJob) -> None:
    job.cluster.ranks_per_node = 3
    (problem,) = told(job, train__global_batch_size=100, train__image_micro_batch_size=7)
    assert "is not divisible by 3 ranks" in problem and problem.endswith("give 84 or 105")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deepspeed__zero_stage", 3),
        ("deepspeed__offload_optimizer", True),
        ("train__precision", "fp16"),
    ],
)
def test_what_lamb_cannot_do_is_refused_with_the_reason(
    job: TrainJob, field: str, value: Any
) -> None:
    assert told(job, **{field: value}) == []
    (problem,) = told(job, train__optimizer="lamb")
    shown = str(value).lower()
    assert problem.startswith(f"{field.replace('__', '.')} = {shown}: ")
    assert "train.optimizer=lamb" in problem and "or optimizer=adamw" in problem


@pytest.mark.parametrize("stage", [1, 2])
def test_lamb_takes_stages_1_and_2(job: TrainJob, stage: int) -> None:
    assert told(job, train__optimizer="lamb", deepspeed__zero_stage=stage) == []


def test_a_patch_dropout_that_leaves_no_patch_is_refused(job: TrainJob) -> None:
    (problem,) = told(job, model__vision__patch_dropout=0.995)  # of 49 patches
    assert "leaves 0.25 of the 49 patches" in problem and "at most 0.9796" in problem
    assert told(job, model__vision__patch_dropout=0.9796) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [("s4://bucket/x", "fsspec knows no s4://"), ("s3:/bucket/x", "is no URL")],
)
def test_a_remote_that_fsspec_does_not_know_is_refused(
    job: TrainJob, url: str, reason: str
) -> None:
    (problem,) = told(job, checkpoint__remote=url)
    assert problem.startswith(f"checkpoint.remote = {url}: {reason}") and "s3://" in problem


def test_a_remote_whose_package_is_missing_names_the_package(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    (problem,) = told(job, checkpoint__remote="gs://bucket/x")
    assert "the package for gs:// is missing" in problem and "gcsfs" in problem


def test_tensorboard_is_asked_for_where_it_is_missing(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    (problem,) = told(job, logging__tensorboard=True)
    assert problem.startswith("logging.tensorboard = true: tensorboard is not installed; `pip ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("os"))
    assert told(job, logging__tensorboard=True) == []


def test_a_run_dir_that_is_a_file_is_refused(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = told(job, run_dir=str(tmp_path / "file"))
    assert "is a file; name a folder" in problem


def test_all_problems_come_at_once(job: TrainJob) -> None:
    job.cluster.ranks_per_node = 3
    problems = told(
        job,
        run_dir="",
        train__global_batch_size=100,
        train__steps=10,
        train__warmup_steps=10,
        train__schedule="wsd",
        train__optimizer="lamb",
        train__precision="fp16",
        train__layer_decay=2.0,
        deepspeed__zero_stage=3,
        model__image_size=225,
        checkpoint__remote="s4://b",
        health__loss_spike=0.5,
    )
    assert len(problems) == len(set(problems)) == 10, problems


def test_validating_a_remote_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        "from pipeline.config.composition import load_job\n"
        "load_job(['run_dir=x', 'checkpoint.remote=s3://b/x',"
        f" 'data.manifest={tmp_path}/manifest.json'])"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_messages_reach_the_user_as_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)train.cooldown_steps = 5.*health.loss_spike = 0.5"):
        load_job(["train.cooldown_steps=5", "health.loss_spike=0.5", f"run_dir={tmp_path}"])

"""Values of a command line that cannot be: all told at once, each by its name with a fix that is
taken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError, TrainJob
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import load_job
from pipeline.config.frozen import load_frozen, to_yaml
from pipeline.config.validation import validate
from pipeline.config.validation.evaluation import validate_eval_sets


@pytest.fixture
def start(tmp_path: Path) -> list[str]:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"num_samples": 90}))
    return ["experiment=tiny", f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]


def told(words: list[str]) -> list[str]:
    """The problems of a start, a line each."""
    with pytest.raises(ConfigError) as refused:
        job_of_arguments(words)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("train.lr=quick", "train.lr = 'quick': give a number"),
        ("train.lr=null", "train.lr = null: give a number"),
        ("train.steps=2e2", "train.steps = 2e2: give a whole number, such as 200"),
        ("train.steps=2.5", "train.steps = 2.5: give a whole number"),
        ("train.ema_decay=often", "train.ema_decay = 'often': give a number, or null"),
        ("train.precision=FP32", "give one of fp32, bf16, pure_bf16, fp16"),
        ("model.quick_gelu=perhaps", "give true or false"),
        ("eval.datasets=pets", "eval.datasets = 'pets': give a list, such as [pets]"),
        ("model.image_std=0.3", "model.image_std = 0.3: give a list, such as [0.5,0.5,0.5]"),
        ("data.mixture=[{manifest:a,wait:2}]", "such as [{manifest: A, weight: 3}] (Key 'wait'"),
        ("loss=sigmoid", "is a group of fields (.*); give them one by one, such as loss.kind="),
        ("model=vit_b_33", "give one of demo, tiny, .*; do you mean vit_b_32?"),
        ("cluster=null", "give one of local, multi_node, one_node, or leave it out"),
        ("model=[demo,tiny]", "only one can be chosen; give one of demo, tiny"),
        ("experiment=demo,tiny", "one command starts one job; give one value"),
        ("train.lr=1e-3,2e-3", "one command starts one job; give one value"),
    ],
)
def test_a_value_of_another_type_is_told_with_what_to_give(
    word: str, problem: str, start: list[str]
) -> None:
    (line,) = told([*start, word])
    assert line.startswith(f"{word.partition('=')[0]} = ")
    assert re.search(re.escape(problem).replace(r"\.\*", ".*"), line), line


def test_wrong_types_and_wrong_values_are_told_together(start: list[str]) -> None:
    lines = told(
        [*start, "train.lr=quick", "train.steps=1", "model=big", "model.image_mean=[0.1,0.2]"]
    )
    assert [line.partition(" = ")[0] for line in lines] == [
        "train.lr",
        "model",
        "train.warmup_steps",
        "model.image_mean",
    ]


def test_wrong_types_beside_an_earlier_run_are_told_together(start: list[str]) -> None:
    job = load_job(start)
    Path(job.run_dir).mkdir()
    Path(job.run_dir, "config.yaml").write_text(to_yaml(job))
    lines = told([f"run_dir={job.run_dir}", "train.lr=quick", "data.num_workers=0"])
    assert lines == ["train.lr = 'quick': give a number", "data.num_workers = 0: give 1 to 256"]


@pytest.mark.parametrize(
    ("words", "name", "part"),
    [
        (["model.image_mean=[0.4]"], "model.image_mean", "three values"),
        (["model.image_mean=[0.4,0.4,0.4,0.4]"], "model.image_mean", "three values"),
        (["model.image_mean=[0.4,nan,0.4]"], "model.image_mean", "from 0 to 1"),
        (["model.image_mean=[-0.4,0.4,0.4]"], "model.image_mean", "from 0 to 1"),
        (["model.image_mean=[127.5,102,51]"], "model.image_mean", "image_mean=[0.5,0.4,0.2]"),
        (["model.image_std=[0.3,0.3,0]"], "model.image_std", "from 0.001 to 1"),
        (["model.text.vocab_size=30522"], "model.text.vocab_size", "give 49408 to"),
        (["model.text.context_length=2"], "model.text.context_length", "give 3 to 77"),
        (
            ["model.vision.stem=conv", "model.vision.width=90", "model.vision.num_heads=3"],
            "model.vision.width",
            "give 84 or 96, or stem=patch",
        ),
        (["model.vision.patch_size=7"], "model.image_size", "image_size 28 or 35, or patch_size 4"),
        (["model.text.num_heads=5"], "model.text.width", "num_heads 4 or 8, or width 60 or 65"),
        (["model.vision.num_layers=9000000"], "model.vision", "parameters"),
        (["train.seed=36893488147419103232"], "train.seed", "from -2**63 to 2**64 - 1"),
        (["train.seed=-9223372036854775809"], "train.seed", "from -2**63 to 2**64 - 1"),
        (["train.eps=1e-60"], "train.eps", "give 1e-30 to 1"),
        (["train.global_batch_size=400"], "train.global_batch_size", "give at most 90"),
        (["data.num_workers=5000"], "data.num_workers", "give 1 to 256"),
        (["cluster.ranks_per_node=4096"], "train.global_batch_size", "cluster.ranks_per_node=16"),
        (["cluster.timeout_minutes=1e200"], "cluster.timeout_minutes", "give 0.1 to 525600"),
        (["health.stall_minutes=1e200"], "health.stall_minutes", "at most 525600"),
        (["loss.init_logit_bias=nan"], "loss.init_logit_bias", "give -100 to 100"),
        (["data.manifest=s9://bucket/m.json"], "data.manifest", "fsspec knows no s9://"),
        (["run_dir=gs://bucket/run"], "run_dir", "checkpoint.remote"),
        (["run_dir=~/run"], "run_dir", f"give {os.path.expanduser('~')}/run"),
        (["run_dir=/proc/nowhere/run"], "run_dir", "/proc cannot be written to"),
        (
            ["logging.wandb_mode=offline", "logging.wandb_project=my/project"],
            "logging.wandb_project",
            "give another name",
        ),
    ],
)
def test_what_would_fail_later_is_refused_at_the_start(
    words: list[str], name: str, part: str, start: list[str]
) -> None:
    line = told([*start, *words])[0]
    assert line.startswith((f"{name} = ", f"{name}: ")) and part in line, line


@pytest.mark.parametrize("scale", [20.0, 100.0, 14.28])
def test_a_scale_that_is_no_logarithm_is_told_with_its_logarithm(
    scale: float, start: list[str]
) -> None:
    words = [*start, f"loss.init_logit_scale={scale}", f"loss.max_logit_scale={2 * scale}"]
    problems = told(words)
    assert [problem.partition(" = ")[0] for problem in problems] == [
        "loss.max_logit_scale",
        "loss.init_logit_scale",
    ]
    for problem in problems:
        (logarithm,) = re.findall(r"give ln\([\d.]+\) = ([\d.]+)$", problem)
        words = [word.replace(f"{problem.split()[2][:-1]}", logarithm) for word in words]
    assert load_job([*start, "loss.max_logit_scale=4.7", "loss.init_logit_scale=2.9"])


def test_a_temperature_is_told_with_its_logarithm(start: list[str]) -> None:
    (problem,) = told([*start, "loss.init_logit_scale=0.05"])
    assert problem.endswith("for a temperature of 0.05 give ln(1/0.05) = 2.9957")
    assert load_job([*start, "loss.init_logit_scale=2.9957"])


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**32, 2**64 - 1])
def test_every_seed_that_the_generators_take_is_taken(seed: int, start: list[str]) -> None:
    assert load_job([*start, f"train.seed={seed}"]).train.seed == seed


def evaluation_set(folder: Path) -> str:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    return str(folder)


def test_evaluation_sets_are_told_apart_by_their_names(tmp_path: Path) -> None:
    pets = evaluation_set(tmp_path / "a" / "pets")
    same = evaluation_set(tmp_path / "b" / "Pets")
    cars = evaluation_set(tmp_path / "b" / "cars")
    assert validate_eval_sets([pets, cars]) == []
    (problem,) = validate_eval_sets([pets, cars, same])
    assert f"{pets} and {same} have one name, by which scores are kept (pets)" in problem
    (problem,) = validate_eval_sets([cars, f"{cars}/"])
    assert "have one name" in problem


@pytest.mark.parametrize("folder", ["", " ", "/", "/.."])
def test_an_evaluation_set_without_a_name_is_refused(folder: str) -> None:
    (problem,) = validate_eval_sets([folder])
    assert "has no name, by which its scores would be kept" in problem


def test_a_folder_that_is_no_evaluation_set_is_refused(tmp_path: Path) -> None:
    (problem,) = validate_eval_sets([str(tmp_path)])
    assert f"{tmp_path} has no test/nshards.txt" in problem


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_manifest_that_is_none_is_refused(content: str, start: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (problem,) = told(start)
    assert problem.startswith(f"data.manifest = {tmp_path}/manifest.json: is no ")
    (problem,) = told([*start, f"data.manifest={tmp_path}"])
    assert problem.endswith(f"is a folder; give {tmp_path}/manifest.json")


def test_a_run_begun_under_other_rules_goes_on(start: list[str]) -> None:
    job = load_job(start)
    path = Path(job.run_dir, "config.yaml")
    Path(job.run_dir, "checkpoints", "step_00000004").mkdir(parents=True)
    job.loss.init_logit_scale = 0.07
    job.model.image_mean = [120.0, 110.0, 100.0]
    path.write_text(to_yaml(job))
    assert job_of_arguments([f"run_dir={job.run_dir}"]) == job
    (problem,) = told([f"run_dir={job.run_dir}", "loss.init_logit_scale=50"])
    assert problem.startswith("loss.init_logit_scale = 50.0: ")


def test_one_value_for_all_channels_is_read_as_three(start: list[str]) -> None:
    job = load_job(start)
    path = Path(job.run_dir, "config.yaml")
    path.parent.mkdir()
    job.model.image_mean = [0.5]
    path.write_text(to_yaml(job))
    assert load_frozen(path).model.image_mean == [0.5, 0.5, 0.5]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    batch=st.integers(2, 120),
    nodes=st.integers(1, 4),
    ranks=st.integers(1, 9),
    gpus=st.booleans(),
    image=st.none() | st.integers(1, 5),
    text=st.none() | st.integers(1, 5),
    goes_on=st.booleans(),
)
def test_every_batch_and_rank_that_a_refusal_offers_is_taken(
    batch: int,
    nodes: int,
    ranks: int,
    gpus: bool,
    image: int | None,
    text: int | None,
    goes_on: bool,
    tmp_path: Path,
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"num_samples": 90}))
    job = TrainJob(run_dir=str(tmp_path))
    job.data.manifest = str(tmp_path / "manifest.json")
    kept = TrainJob(run_dir=str(tmp_path)) if goes_on else None
    job.train.global_batch_size = batch
    job.cluster.nodes, job.cluster.ranks_per_node = nodes, ranks
    job.cluster.gpus_per_node = ranks if gpus else 0
    job.train.image_micro_batch_size, job.train.text_micro_batch_size = image, text
    if kept is not None:
        kept.train.global_batch_size = batch
    problems = [line for line in validate(job, kept) if line.startswith("train.global_batch_size")]
    if not problems:
        return
    (problem,) = problems
    advice = problem.rpartition("; give ")[2]
    if "before" in advice or "more data" in advice:
        return
    for offer in re.split(r",? or ", advice.removeprefix("at most ")):
        words = dict(re.findall(r"([\w.]+)=(\d+)", offer)) or {"train.global_batch_size": offer}
        job.train.global_batch_size, job.cluster.nodes, job.cluster.ranks_per_node = (
            int(words.get("train.global_batch_size", batch)),
            int(words.get("cluster.nodes", nodes)),
            int(words.get("cluster.ranks_per_node", ranks)),
        )
        assert validate(job, kept) == [], (problem, offer)

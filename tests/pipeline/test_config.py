"""Composition, validation and freezing of the training job."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.ground.fields import changeable_names
from pipeline.config import ConfigError, TrainJob, composition
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import CONF_DIR, load_job
from pipeline.config.frozen import load_frozen, values_by_name
from pipeline.config.run_config import lock_run
from pipeline.config.validation import validate
from tests.pipeline.begun_runs import begin

GOLDEN = Path(__file__).parents[1] / "golden"
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
    there = replace(composition.CONFIGURATION, folder=copy)
    monkeypatch.setattr(composition, "CONFIGURATION", there)
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
    assert load_frozen(begin(job)) == job


def test_a_typo_in_a_frozen_config_is_refused(given: list[str]) -> None:
    path = begin(load_job(["experiment=tiny", *given]))
    path.write_text(path.read_text().replace("zero_stage", "zero_stge"))
    with pytest.raises(ConfigError, match="zero_stge"):
        load_frozen(path)


def test_naming_the_run_directory_resumes_its_configuration(given: list[str]) -> None:
    job = load_job(["experiment=tiny", *given, "train.lr=0.00123"])
    begin(job)
    assert job_of_arguments([f"run_dir={job.run_dir}"]) == job


def test_a_run_directory_without_a_run_is_told(tmp_path: Path) -> None:
    told = f"run_dir = {tmp_path / 'mien'}: no earlier run is there"
    with pytest.raises(ConfigError, match=re.escape(told)):
        job_of_arguments([f"run_dir={tmp_path / 'mien'}"])
    with pytest.raises(ConfigError) as one_that_begins:
        job_of_arguments([f"run_dir={tmp_path / 'mien'}", "data.manifest=no.json", "train.lr=-1"])
    assert "no earlier run" not in str(one_that_begins.value)


def test_another_configuration_in_the_run_directory_is_refused_with_the_difference(
    given: list[str],
) -> None:
    path = begin(load_job(["experiment=tiny", *given]))
    before = path.read_text()
    with pytest.raises(ConfigError) as refused:
        begin(load_job(["experiment=tiny", *given, "train.lr=0.5", "train.precision=fp16"]))
    told = str(refused.value)
    assert "  - train.lr: 0.001\n  + train.lr: 0.5\n" in told
    assert '  + train.precision: "fp16"' in told
    assert told.endswith("force=[train.lr,train.precision]")
    assert path.read_text() == before


@pytest.mark.parametrize(
    "word",
    [
        "cluster.ranks_per_node=4",
        "deepspeed.zero_stage=3",
        "logging.every_steps=3",
        "checkpoint.kept=5",
        "health.stall_minutes=3",
        "eval.batch_size=3",
        "data.num_workers=7",
        "data.prefetch_batches=9",
        "train.image_micro_batch_size=2",
        "train.text_micro_batch_size=4",
        "train.compile=blocks",
        "train.overlap_text_gather=false",
        "train.threads_per_rank=3",
    ],
)
def test_a_resumed_run_may_change_how_and_where_it_computes(word: str, given: list[str]) -> None:
    begin(load_job(["experiment=tiny", *given]))
    job = load_job(["experiment=tiny", *given, word])
    assert load_frozen(begin(job)) == job


@pytest.mark.parametrize(
    "word", ["train.lr=0.5", "train.seed=1", "data.chunk_size=3", "model.name=other"]
)
def test_a_resumed_run_may_not_change_what_it_computes(word: str, given: list[str]) -> None:
    begin(load_job(["experiment=tiny", *given]))
    with pytest.raises(ConfigError, match=f"force=.{word.partition('=')[0]}"):
        begin(load_job(["experiment=tiny", *given, word]))


def test_what_may_change_is_what_could_before_it_stood_beside_the_fields() -> None:
    groups = ("cluster.", "logging.", "checkpoint.", "health.", "eval.", "deepspeed.")
    fields = {
        "run_dir",
        "force",
        "data.num_workers",
        "data.prefetch_batches",
        "loss.backend",
        "loss.stash_mib",
        "loss.tile",
        "train.image_micro_batch_size",
        "train.text_micro_batch_size",
        "train.compile",
        "train.overlap_text_gather",
        "train.threads_per_rank",
    }
    names = values_by_name(TrainJob())
    allowed = {name for name in names if name in fields or name.startswith(groups)}
    assert fields < allowed
    assert changeable_names(TrainJob()) == allowed


def test_a_run_frozen_before_null_meant_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.json").write_text("{}")
    Path("run").mkdir()
    before = (GOLDEN / "config_before_null.yaml").read_text()
    assert "ema_decay: 0.0" in before and "remote: ''" in before
    Path("run/config.yaml").write_text(before)
    same = ["experiment=tiny", "data.manifest=manifest.json", "run_dir=run"]
    job = load_job([*same, "train.threads_per_rank=null"])
    assert load_frozen("run/config.yaml") == job
    assert job_of_arguments(["run_dir=run"]) == job
    begin(job)  # makes a checkpoint
    assert "ema_decay: null" in Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(before)
    with pytest.raises(ConfigError, match="  - train.ema_decay: null\n  . train.ema_decay: 0.5"):
        begin(load_job([*same, "train.ema_decay=0.5"]))


def test_the_old_off_is_refused_with_the_new_one(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="train.ema_decay = 0.0: .*; null turns it off"):
        load_job([*given, "train.ema_decay=0"])


def test_force_names_exactly_what_differs(given: list[str]) -> None:
    begin(load_job(["experiment=tiny", *given]))

    def refusal(*words: str) -> str:
        with pytest.raises(ConfigError) as refused:
            begin(load_job(["experiment=tiny", *given, *words]))
        return str(refused.value)

    assert "+ train.seed: 3" in refusal("train.lr=0.5", "train.seed=3", "force=[train.lr]")
    assert "train.steps, which is 20 in the run too" in refusal("force=[train.steps]")
    told = refusal("force=[train.lrr,train,cluster.nodes]")
    assert "train.lrr, which is no field; do you mean train.lr?" in told
    assert "names train, which is no field" in told
    assert "cluster.nodes, which may change anyway" in told
    words = ["train.lr=0.5", "train.seed=3", "force=[train.lr,train.seed]"]
    forced = load_frozen(begin(load_job(["experiment=tiny", *given, *words])))
    assert (forced.train.lr, forced.train.seed) == (0.5, 3)
    # the next start is not forced any more: it is that run
    resumed = job_of_arguments([f"run_dir={forced.run_dir}"])
    begin(resumed)
    assert resumed.train.lr == 0.5 and resumed.force == []


def test_force_without_a_run_is_refused(given: list[str]) -> None:
    job = load_job(["experiment=tiny", *given, "force=[train.lr]"])
    with pytest.raises(ConfigError, match="holds no run to differ in"):
        begin(job)
    assert not Path(job.run_dir).exists()


def test_values_given_beside_the_run_directory_change_that_run(given: list[str]) -> None:
    started = load_job(["experiment=tiny", *given, "train.lr=0.00123"])
    begin(started)
    run_dir = f"run_dir={started.run_dir}"
    job = job_of_arguments([run_dir, "cluster.ranks_per_node=4", "train.compile=towers"])
    assert (job.world_size, job.train.compile.value, job.train.lr) == (4, "towers", 0.00123)
    begin(job)
    with pytest.raises(ConfigError, match="force=.train.steps"):
        begin(job_of_arguments([run_dir, "train.steps=30"]))
    begin(job_of_arguments([run_dir, "train.steps=30", "force=[train.steps]"]))
    assert job_of_arguments([run_dir]).train.steps == 30
    with pytest.raises(ConfigError, match=r"(?s)cannot go on.*global_batch_size"):
        job_of_arguments([run_dir, "cluster.ranks_per_node=7"])
    with pytest.raises(ConfigError, match="ranks_per_nod"):
        job_of_arguments([run_dir, "cluster.ranks_per_nod=1"])
    with pytest.raises(ConfigError, match="many"):
        job_of_arguments([run_dir, "train.steps=many"])
    with pytest.raises(ConfigError, match="data.manifest is not given"):
        job_of_arguments([run_dir, "experiment=tiny"])  # composed anew


def test_a_run_directory_that_cannot_be_written_is_refused(given: list[str]) -> None:
    manifest = given[0].partition("=")[2]
    below_a_file = f"{manifest}/run"
    problem = "run_dir = .*manifest.json/run: cannot be "
    with pytest.raises(ConfigError, match=problem + "written"):
        lock_run(below_a_file)
    with pytest.raises(ConfigError, match=problem + "made, because"):
        load_job(["experiment=tiny", given[0], f"run_dir={below_a_file}"])


def test_composing_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        "import pipeline.config, pipeline.launch"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

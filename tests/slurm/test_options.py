"""sbatch's options from ClusterConfig."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ClusterConfig, ConfigError
from pipeline.config.composition import load_cluster
from slurm.options import cluster_problems, sbatch_options, setup_script, time_limit_s


def test_all_that_is_asked_for_and_nothing_else() -> None:
    cluster = ClusterConfig(nodes=2, ranks_per_node=4, cpus_per_rank=6, time_limit="1-12")
    always = [
        "--parsable",
        "--requeue",
        "--job-name=mine",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=6",
        "--time=1-12",
        "--signal=B:USR1@120",
        "--open-mode=append",
        "--chdir=/home/me",
        "--output=/runs/mine/slurm-%j.out",
    ]
    assert sbatch_options(cluster, Path("/runs/mine"), Path("/home/me")) == always
    asked = replace(cluster, gpus_per_node=4, partition="gpu", account="vision", qos="long")
    added = {"--gpus-per-node=4", "--partition=gpu", "--account=vision", "--qos=long"}
    assert set(sbatch_options(asked, Path("/runs/mine"), Path("/home/me"))) == {*always, *added}


def test_a_percent_sign_in_the_folder_is_no_pattern_of_slurm() -> None:
    options = sbatch_options(ClusterConfig(), Path("/runs/10%j"), Path("/"))
    assert "--output=/runs/10%%j/slurm-%j.out" in options


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("24:00:00", 86400),
        ("1-0", 86400),
        ("1-06", 108000),
        ("1-06:30", 109800),
        ("1-06:30:15", 109815),
    ],
)
def test_time_limits_that_sbatch_takes(text: str, seconds: int) -> None:
    assert time_limit_s(text) == seconds


@given(st.text(alphabet="0123456789:- x", max_size=12))
def test_any_other_text_is_refused_and_never_misread(text: str) -> None:
    seconds = time_limit_s(text)
    days, _, rest = text.rpartition("-")
    parts = rest.split(":")
    well_formed = (
        text.count("-") <= 1 and len(parts) <= 3 and all(part.isdigit() for part in parts)
    ) and (days.isdigit() if "-" in text else True)
    assert (seconds is not None) == well_formed


def test_every_problem_at_once() -> None:
    cluster = ClusterConfig(
        ranks_per_node=8,
        gpus_per_node=4,
        cpus_per_rank=0,
        time_limit="0:00",
        signal_before_s=5,
        setup=["source 'venv/bin/activate"],
    )
    told = "\n".join(cluster_problems(cluster))
    for words in (
        "cluster.ranks_per_node = 8",
        "cluster.cpus_per_rank = 0",
        "cluster.time_limit = 0:00",
        "cluster.signal_before_s = 5: give 30 to 65534",
        "unexpected EOF",
    ):
        assert words in told, words
    assert len(cluster_problems(cluster)) == 5


def test_a_warning_that_fills_the_whole_time_limit() -> None:
    (problem,) = cluster_problems(ClusterConfig(time_limit="2", signal_before_s=120))
    assert "cluster.signal_before_s = 120: give 30 to 119" in problem
    assert cluster_problems(ClusterConfig(time_limit="2", signal_before_s=119)) == []


def test_defaults_have_no_problem() -> None:
    assert cluster_problems(ClusterConfig()) == []


def test_the_cluster_that_words_mean() -> None:
    cluster = load_cluster(["cluster=one_node", "cluster.time_limit=24:00:00", "cluster.nodes=3"])
    assert (cluster.nodes, cluster.gpus_per_node, cluster.time_limit) == (3, 8, "24:00:00")
    with pytest.raises(ConfigError, match="cluster.partitoin"):
        load_cluster(["cluster.partitoin=gpu"])


def test_setup_is_sourced_in_order_and_may_replace_python(tmp_path: Path) -> None:
    """As the .sbatch files do it: `set -e`, source, then $PYTHON."""
    setup = tmp_path / "setup.sh"

    def sourced(*lines: str) -> subprocess.CompletedProcess[str]:
        setup.write_text(setup_script(ClusterConfig(setup=list(lines)), "/my envs/it's/python"))
        shell = ["bash", "-c", f'set -e; source "{setup}"; echo "$PYTHON $SET_BY_SETUP"']
        return subprocess.run(shell, capture_output=True, text=True, timeout=10)

    assert sourced("export SET_BY_SETUP=yes").stdout == "/my envs/it's/python yes\n"
    assert sourced("PYTHON=python3.12", "SET_BY_SETUP=2").stdout == "python3.12 2\n"
    failed = sourced("false", "echo not reached")
    assert failed.returncode == 1 and failed.stdout == ""

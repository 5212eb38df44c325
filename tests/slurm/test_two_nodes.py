"""On a real two-node Slurm: what slurm.submit sends there runs, fails, is warned and comes back."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.dataset.manifest import load_manifest
from data_tools.ground.lock import take
from tests.data_tools.local_web import CONTACT
from tests.integration.runs import last_step, metrics, run, tiny_shards
from tests.pipeline.data.eval_sets import write_retrieval
from tests.pipeline.data.images import encode, synthetic_photo
from tests.slurm.pictures import API_PORT, IMAGES_PORT
from tests.slurm.two_nodes import STATE, TwoNodes, Unavailable, output, two_nodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ON_TWO_NODES = ("cluster.nodes=2", "cluster.ranks_per_node=1", "cluster.cpus_per_rank=1")
STEPS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    try:
        with two_nodes() as up:
            yield up
    except Unavailable as error:
        pytest.skip(str(error))
    assert not STATE.exists()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, float]]]:
    """The overrides of a run (without run_dir), and its metrics as two local processes."""
    folder = tmp_path_factory.mktemp("local")
    overrides = [
        "experiment=tiny",
        f"data.manifest={tiny_shards(folder / 'data')}",
        f"train.steps={STEPS}",
    ]
    ended = run(*overrides, f"run_dir={folder / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return overrides, metrics(folder / "run")


@pytest.fixture
def started(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> tuple[str, Path]:
    """Id and run directory of a training job in the middle of its steps, one checkpoint behind."""
    run_dir = tmp_path / "run"
    job_id = cluster.submitted(*local[0], *ON_TWO_NODES, f"run_dir={run_dir}")
    cluster.wait_until(job_id, lambda _: last_step(run_dir) >= 7)
    return job_id, run_dir


def test_losses_equal_those_of_two_local_processes(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    overrides, expected = local
    run_dir = tmp_path / "run"
    job_id = cluster.submitted(*overrides, *ON_TWO_NODES, f"run_dir={run_dir}")
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert job["JobState"] == "COMPLETED" and job["ExitCode"] == "0:0", told
    assert job["NodeList"] == "node[1-2]" and job["JobName"] == "run"
    assert "2 nodes, 2 ranks, rank 0 on node1:" in told
    assert f"0: step {STEPS}/{STEPS}" in told
    assert metrics(run_dir) == expected  # bit for bit, gradient norms and sample keys included
    (entry,) = json.loads((run_dir / "submit.json").read_text())
    assert entry["jobs"][0]["job_id"] == job_id


def assert_resumed(
    cluster: TwoNodes, started: tuple[str, Path], expected: list[dict[str, float]]
) -> str:
    """The job was restarted once, went on behind a checkpoint, and computed what it would have."""
    job_id, run_dir = started
    job = cluster.wait_until(job_id, lambda job: job["Restarts"] == "1")
    steps_done = last_step(run_dir)
    assert 7 <= steps_done < STEPS, "the job ended before it was disturbed"
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1", told
    first_run, second_run = told.split(f"job {job_id}, restart 1:")
    assert f"job {job_id}, restart 0:" in first_run
    saved = int(re.findall(r"checkpoint step_(\d+):", first_run)[-1])
    done = int(re.findall(r"step (\d+)/", first_run)[-1])
    first_step = re.search(r"step (\d+)/", second_run)
    assert first_step is not None and saved < int(first_step[1]) <= done + 1, told
    assert metrics(run_dir) == expected
    return told


def saved_at(told: str) -> int:
    """The step at which the warned ranks of a job agreed to stop, all of them; none is repeated."""
    first_run, second_run = told.split(", restart 1:")
    assert "requeued (ranks ended with code 75); checkpoint saved" in first_run, told
    last = int(re.findall(r"step (\d+)/", first_run)[-1])
    assert f"checkpoint step_{last:08d}" in first_run, told
    assert f"step {last + 1}/" in second_run and f"step {last}/" not in second_run, told
    return last


def test_requeued_by_hand_resumes(
    cluster: TwoNodes,
    started: tuple[str, Path],
    local: tuple[list[str], list[dict[str, float]]],
) -> None:
    assert cluster.call("scontrol", "requeue", started[0]).returncode == 0
    assert_resumed(cluster, started, local[1])


def test_warned_before_the_time_limit_resumes(
    cluster: TwoNodes,
    started: tuple[str, Path],
    local: tuple[list[str], list[dict[str, float]]],
) -> None:
    """By this signal to this process (--signal=B:USR1@...); the limit itself takes minutes."""
    assert cluster.call("scancel", "--batch", "--signal=USR1", started[0]).returncode == 0
    told = assert_resumed(cluster, started, local[1])
    assert "told to stop; the ranks have 110 s" in told
    assert saved_at(told) >= 7


def test_a_signal_to_the_ranks_alone_is_a_checkpoint_and_a_requeue(
    cluster: TwoNodes,
    started: tuple[str, Path],
    local: tuple[list[str], list[dict[str, float]]],
) -> None:
    """It goes to all processes of the step, those that decode included."""
    assert cluster.call("scancel", "--signal=USR1", f"{started[0]}.0").returncode == 0
    assert saved_at(assert_resumed(cluster, started, local[1])) >= 7


def test_preempted_with_a_grace_time_resumes(
    cluster: TwoNodes,
    started: tuple[str, Path],
    local: tuple[list[str], list[dict[str, float]]],
) -> None:
    # the scheduler may take seconds: the ranks wait for it, and wake with its SIGCONT and SIGTERM
    assert cluster.call("scancel", "--signal=STOP", started[0]).returncode == 0
    urgent = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=4", "--time=1")
    ended = cluster.call("sbatch", *urgent, "--output=/dev/null", "--wrap=true")
    assert ended.returncode == 0, ended.stderr
    assert saved_at(assert_resumed(cluster, started, local[1])) >= 7


def test_a_node_without_power_then_resumes(
    cluster: TwoNodes,
    started: tuple[str, Path],
    local: tuple[list[str], list[dict[str, float]]],
) -> None:
    cluster.power_off("node2")
    cluster.wait_until(started[0], lambda job: job["JobState"] == "PENDING")
    cluster.power_on("node2")
    assert_resumed(cluster, started, local[1])


def test_one_job_a_run_directory_and_a_cancelled_one_stays_cancelled(
    cluster: TwoNodes, started: tuple[str, Path]
) -> None:
    job_id, run_dir = started
    second = cluster.submit(f"run_dir={run_dir}")
    assert second.returncode == 1
    assert f"its job {job_id} is running" in second.stderr and f"scancel {job_id}" in second.stderr
    assert cluster.call("scancel", job_id).returncode == 0
    cluster.wait_until(job_id, lambda job: job["JobState"] == "CANCELLED")
    assert cluster.queue() == []
    assert "requeued" not in output(cluster.job(job_id))


def test_a_run_that_a_job_trains_is_refused_outside_of_it(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    words = [word for word in local[0] if not word.startswith("train.steps=")]
    words += ["train.steps=20000", "checkpoint.every_steps=20000", f"run_dir={tmp_path / 'run'}"]
    job_id = cluster.submitted(*words, *ON_TWO_NODES)
    cluster.wait_until(job_id, lambda _: last_step(tmp_path / "run") >= 1)
    here = ("cluster.nodes=1", "cluster.ranks_per_node=1")
    ended = cluster.call(sys.executable, "-m", "pipeline.train", *words, *here)
    assert ended.returncode == 2, ended.stderr
    assert re.search(rf"trained already \(process \d+ on node1, Slurm job {job_id}, ", ended.stderr)
    assert cluster.call("scancel", job_id).returncode == 0
    cluster.wait_until(job_id, lambda job: job["JobState"] == "CANCELLED")


def test_a_job_of_a_run_that_is_trained_elsewhere_is_refused_by_all_its_ranks(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with take(run_dir / ".lock"):
        job_id = cluster.submitted(*local[0], *ON_TWO_NODES, f"run_dir={run_dir}")
        job = cluster.wait_for_end(job_id)
    told = output(job)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), told
    assert told.count("this run is being trained already (process ") == 1, told
    assert f"process {os.getpid()} on {socket.gethostname()}" in told
    assert not list(run_dir.glob("config*"))


def test_ranks_that_outlast_the_warning_are_requeued_over(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    setup = "trap '' USR1; [[ -n $SLURM_RESTART_COUNT ]] && exit 0; sleep 300"
    job_id = cluster.submitted(
        *local[0],
        *ON_TWO_NODES,
        f"run_dir={tmp_path / 'run'}",
        "cluster.signal_before_s=30",
        f'cluster.setup=["{setup}"]',
    )
    cluster.wait_until(job_id, lambda job: job["JobState"] == "RUNNING")
    cluster.wait_until(job_id, lambda job: "restart 0:" in output(job))
    assert cluster.call("scancel", "--batch", "--signal=USR1", job_id).returncode == 0
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert "the ranks have 20 s" in told and "requeued" in told, told
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), told


def test_an_evaluation_on_two_nodes_scores_as_a_local_one_and_trains_nothing(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    images = [encode(synthetic_photo(seed, 40, 30), ".png") for seed in range(5)]
    photos = write_retrieval(tmp_path / "photos", images, [[f"photo {i}"] for i in range(5)])
    ended = run(*local[0], f"run_dir={run_dir}", "train.steps=10", "cluster.ranks_per_node=1")
    assert ended.returncode == 0, ended.stderr
    lines = (run_dir / "metrics.jsonl").read_text()
    config = (run_dir / "config.yaml").read_bytes()
    words = [f"run_dir={run_dir}", f"eval.datasets=[{photos}]", "step=5"]
    job_id = cluster.submitted("--evaluate", *words, *ON_TWO_NODES, "cluster.time_limit=00:02:00")
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), told
    assert job["NodeList"] == "node[1-2]" and job["JobName"] == "run-eval"
    assert "0: scoring the weights of step 5" in told and "1: scoring" not in told
    on_nodes = (run_dir / "eval" / "step_00000005.json").read_text()
    (run_dir / "eval" / "step_00000005.json").unlink()
    assert run(*words, module="pipeline.evaluate").returncode == 0
    assert (run_dir / "eval" / "step_00000005.json").read_text() == on_nodes
    assert (run_dir / "metrics.jsonl").read_text() == lines
    assert (run_dir / "config.yaml").read_bytes() == config
    assert not (run_dir / "submit.json").exists() and not (run_dir / "setup.sh").exists()


def test_a_setup_line_that_fails_fails_the_job_with_its_code(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    one_rank = ("cluster.nodes=1", "cluster.ranks_per_node=1", "cluster.cpus_per_rank=1")
    job_id = cluster.submitted(
        *local[0], *one_rank, f"run_dir={tmp_path / 'run'}", "cluster.setup=['(exit 7)']"
    )
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "7:0", "0"), told


def test_a_defect_ends_the_job_with_its_message(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    manifest = tiny_shards(tmp_path / "data")
    shard = manifest.parent / "shards" / "000003.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    overrides = [word for word in local[0] if not word.startswith("data.manifest=")]
    job_id = cluster.submitted(
        *overrides, *ON_TWO_NODES, f"run_dir={tmp_path / 'run'}", f"data.manifest={manifest}"
    )
    job = cluster.wait_for_end(job_id)
    told = output(job)
    # srun's code is the highest of its tasks', and 143 that of one it stopped for another's failure
    assert job["JobState"] == "FAILED" and job["ExitCode"] in ("1:0", "143:0"), told
    assert job["Restarts"] == "0"
    assert "shards/000003.tar" in told and "Traceback" not in told
    left = {path.name for path in (tmp_path / "run").glob("config*")}
    assert left == set(), "the next submission begins with a configuration of its own"


def dataset_words(folder: Path, out_dir: Path, *setup: str) -> list[str]:
    """A data set of the small Commons that each node starts for itself."""
    (folder / "queries.txt").write_text("cat\ndog\n")
    server = [
        '"$PYTHON" -m tests.slurm.pictures >/dev/null 2>&1 &',
        f"until (: </dev/tcp/127.0.0.1/{IMAGES_PORT}) 2>/dev/null; do sleep 0.2; done",
    ]
    return [
        "--shards",
        f"queries.path={folder / 'queries.txt'}",
        f"out_dir={out_dir}",
        f"sources.contact={CONTACT}",
        f"sources.commons.endpoint='http://127.0.0.1:{API_PORT}/w/api.php'",
        f"crawl.allow_private=['127.0.0.1:{IMAGES_PORT}']",
        # the pictures are plain grey, and alike
        "curate.min_grey_std=null",
        "curate.near_duplicate_bits=null",
        "curate.drop_exact_duplicates=false",
        "cluster.cpus_per_rank=2",
        f"cluster.setup={json.dumps([*server, *setup])}",
    ]


def test_a_dataset_job_is_built_on_a_node_and_comes_back_when_warned(
    cluster: TwoNodes, tmp_path: Path
) -> None:
    words = dataset_words(tmp_path, tmp_path / "data", "[[ -n $SLURM_RESTART_COUNT ]] || sleep 300")
    job_id = cluster.submitted(*words, "source=commons")
    cluster.wait_until(job_id, lambda job: "restart 0:" in output(job))
    assert cluster.call("scancel", "--batch", "--signal=USR1", job_id).returncode == 0
    job = cluster.wait_for_end(job_id)
    told = output(job)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), told
    assert load_manifest(tmp_path / "data" / "manifest.json").num_samples > 0


def test_a_dataset_in_array_tasks_is_the_one_of_a_single_job(
    cluster: TwoNodes, tmp_path: Path
) -> None:
    for number in range(2):
        rows = [f"http://127.0.0.1:{IMAGES_PORT}/{number}/{n}.png,a cat {n}\n" for n in range(3)]
        (tmp_path / f"pool{number}.csv").write_text("url,caption\n" + "".join(rows))
    more = [
        "source=[commons,pool]",
        f"sources.pool.paths=['{tmp_path}/pool*.csv']",
        "crawl.samples_per_part=4",
    ]
    ended = cluster.submit(*dataset_words(tmp_path, tmp_path / "tasks"), *more, "--tasks", "2")
    assert ended.returncode == 0, ended.stderr
    (entry,) = json.loads((tmp_path / "tasks" / "submit.json").read_text())
    names = [job["name"] for job in entry["jobs"]]
    arrays = ["match", "balance", "crawl", "retry_1", "rebalance", "pack"]
    assert names == ["queries", *arrays, "report"]
    last = cluster.wait_for_end(entry["jobs"][-1]["job_id"])
    told = "".join(file.read_text() for file in sorted((tmp_path / "tasks").glob("slurm-*.out")))
    assert last["JobState"] == "COMPLETED", told
    array = entry["jobs"][3]["job_id"]
    outputs = [tmp_path / "tasks" / f"slurm-{array}_{task}.out" for task in range(2)]
    assert all("data_tools.build --task" in file.read_text() for file in outputs), told
    job_id = cluster.submitted(*dataset_words(tmp_path, tmp_path / "single"), *more)
    assert cluster.wait_for_end(job_id)["JobState"] == "COMPLETED"
    in_tasks, single = (
        load_manifest(tmp_path / name / "manifest.json") for name in ("tasks", "single")
    )
    assert in_tasks.fingerprint == single.fingerprint and single.num_samples == 8


def test_refused_before_the_queue(
    cluster: TwoNodes, local: tuple[list[str], list[dict[str, float]]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = (*local[0], *ON_TWO_NODES, f"run_dir={run_dir}")
    bad = cluster.submit(*words, "train.global_batch_size=17", "cluster.time_limit=tomorrow")
    assert bad.returncode == 2
    assert "train.global_batch_size = 17" in bad.stderr and "= tomorrow" in bad.stderr
    unknown = cluster.submit(*words, "cluster.partition=nonesuch")
    assert unknown.returncode == 1
    assert "invalid partition specified: nonesuch" in unknown.stderr
    assert cluster.queue() == [] and not run_dir.exists()

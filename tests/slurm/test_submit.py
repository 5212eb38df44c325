"""slurm.submit as a process on a login node; sbatch and squeue are small scripts of the test.

What a real Slurm makes of the same commands: test_two_nodes.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.frozen import load_frozen
from slurm.submit import git_state
from tests.slurm.login_node import ROOT, program, restarted, submit


def test_needs_no_torch(words: list[str]) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'deepspeed', 'wandb', 'numpy', 'cv2', 'img2dataset'):\n"
        "    sys.modules[name] = None\n"
        "from slurm.submit import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--dry-run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_dry_run_prints_all_and_leaves_nothing(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    ended = submit(login_node, "--dry-run", *words, "cluster.setup=[module load cuda]")
    assert ended.returncode == 0, ended.stderr
    command = ended.stdout.split("\n")[0]
    run_dir = tmp_path / "runs" / "mine"
    assert command.startswith("sbatch --parsable --requeue --job-name=mine --nodes=1 ")
    assert command.endswith(f" {ROOT}/slurm/train.sbatch {run_dir} 110")
    assert f"PYTHON={sys.executable}\nmodule load cuda\n" in ended.stdout
    assert (ROOT / "slurm" / "train.sbatch").read_text() in ended.stdout
    assert not (tmp_path / "runs").exists()


def test_every_error_at_once_and_code_2(login_node: Path, words: list[str], tmp_path: Path) -> None:
    ended = submit(
        login_node, *words, "train.global_batch_size=17", "train.lr=0", "cluster.signal_before_s=9"
    )
    assert ended.returncode == 2
    for problem in ("global_batch_size = 17", "train.lr = 0", "cluster.signal_before_s = 9"):
        assert problem in ended.stderr
    assert not (tmp_path / "runs").exists()


def test_problems_of_slurm_alone_are_refused_too(login_node: Path, words: list[str]) -> None:
    ended = submit(login_node, *words, "cluster.time_limit=soon")
    assert ended.returncode == 2 and "cluster.time_limit = soon" in ended.stderr


def test_a_misspelt_key(login_node: Path, words: list[str]) -> None:
    ended = submit(login_node, *words, "cluster.partitoin=gpu")
    assert ended.returncode == 2 and "cluster.partitoin" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_no_slurm_on_this_machine(login_node: Path, words: list[str], tmp_path: Path) -> None:
    ended = submit(login_node, *words)
    assert ended.returncode == 1 and "sbatch: not found" in ended.stderr
    assert not (tmp_path / "runs" / "mine").exists()


def test_a_refusal_of_sbatch_is_told_and_leaves_nothing(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    refusal = "sbatch: error: invalid partition specified: gpu"
    program(login_node, "sbatch", f"echo '{refusal}' >&2; exit 3")
    ended = submit(login_node, *words)
    assert ended.returncode == 1
    assert f"sbatch refused (code 3): {refusal}" in ended.stderr
    assert not (tmp_path / "runs" / "mine").exists()


def test_a_refusal_keeps_what_was_in_the_folder(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "mine"
    run_dir.mkdir(parents=True)
    (run_dir / "notes.txt").write_text("mine")
    program(login_node, "sbatch", "exit 1")
    assert submit(login_node, *words).returncode == 1
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]


def test_a_refusal_keeps_what_an_earlier_submission_wrote(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "mine"
    program(login_node, "sbatch", "echo 42")
    assert submit(login_node, *words, "cluster.setup=[module load cuda]").returncode == 0
    kept = {path: path.read_bytes() for path in run_dir.iterdir()}
    assert {"config.submitted.yaml", "setup.sh", "submit.json"} == {path.name for path in kept}
    program(login_node, "squeue", "true")  # the first job is over
    program(login_node, "sbatch", "exit 1")
    words = [*words, "cluster.setup=[module load other]"]
    assert submit(login_node, *words).returncode == 1
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == kept


def test_submitted_frozen_and_recorded(login_node: Path, words: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "mine"
    program(login_node, "sbatch", f'printf "%s\\n" "$@" > {tmp_path}/arguments; echo "42;cluster"')
    ended = submit(login_node, *words, "cluster.partition=gpu")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"submitted job 42; its output: {run_dir}/slurm-42.out\n"
    (entry,) = json.loads((run_dir / "submit.json").read_text())
    (job,) = entry["jobs"]
    assert job["job_id"] == "42" and entry["python"] == sys.executable
    assert job["command"][0] == "sbatch" and "--partition=gpu" in job["command"]
    assert job["command"][1:] == (tmp_path / "arguments").read_text().splitlines()
    assert {key: entry[key] for key in ("git_commit", "git_dirty")} == git_state()
    assert load_frozen(run_dir / "config.submitted.yaml").cluster.partition == "gpu"
    assert not (run_dir / "config.yaml").exists(), "its ranks have not accepted it"


@pytest.mark.slow
def test_a_second_submission_waits_for_the_first_and_is_added_to_it(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "mine"
    program(login_node, "sbatch", "echo 42")
    assert submit(login_node, *words).returncode == 0
    program(login_node, "squeue", "echo PENDING")
    refused = submit(login_node, f"run_dir={run_dir}")
    assert refused.returncode == 1
    assert "its job 42 is pending" in refused.stderr and "scancel 42" in refused.stderr
    # what squeue says of a job that Slurm has forgotten
    program(login_node, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified'; exit 1")
    program(login_node, "sbatch", "echo 43")
    assert submit(login_node, f"run_dir={run_dir}").returncode == 0
    entries = json.loads((run_dir / "submit.json").read_text())
    assert [job["job_id"] for entry in entries for job in entry["jobs"]] == ["42", "43"]


@pytest.mark.parametrize("damaged", ["", "[{", "7", '[{"jobs": 3}]', '[{"jobs": []}]'])
def test_a_damaged_list_of_submissions_is_named(
    login_node: Path, words: list[str], tmp_path: Path, damaged: str
) -> None:
    run_dir = tmp_path / "runs" / "mine"
    run_dir.mkdir(parents=True)
    (run_dir / "submit.json").write_text(damaged)
    program(login_node, "sbatch", "echo 42")
    ended = submit(login_node, *words)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"{run_dir}/submit.json: is damaged" in ended.stderr
    assert [path.name for path in run_dir.iterdir()] == ["submit.json"]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_folder_with_another_run_is_refused_by_the_dry_run_as_well(
    login_node: Path, words: list[str], tmp_path: Path, flags: list[str]
) -> None:
    program(login_node, "sbatch", "echo 42")
    program(login_node, "squeue", "")
    assert submit(login_node, *words).returncode == 0
    run_dir = tmp_path / "runs" / "mine"
    (run_dir / "config.submitted.yaml").rename(run_dir / "config.yaml")  # as its ranks do
    (run_dir / "checkpoints" / "step_00000005").mkdir(parents=True)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    ended = submit(login_node, *flags, *words, "train.lr=0.5")
    assert ended.returncode == 2
    assert f"{run_dir}: holds a run of another" in ended.stderr
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_run_is_submitted_as_it_was_before_an_evaluation_and_a_refusal(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    program(login_node, "sbatch", f'printf "%s\\n" "$@" > {tmp_path}/arguments; echo 42')
    program(login_node, "squeue", "")
    run_dir = tmp_path / "runs" / "mine"
    assert submit(login_node, *words, "cluster.nodes=4").returncode == 0
    for _ in range(2):  # queued, and begun
        refused = submit(login_node, f"run_dir={run_dir}", "cluster.nodes=3")
        assert refused.returncode == 2, refused.stderr
        (tmp_path / "arguments").unlink()
        ended = submit(login_node, f"run_dir={run_dir}")
        assert ended.returncode == 0, ended.stderr
        assert "--nodes=4" in (tmp_path / "arguments").read_text().splitlines()
        (run_dir / "config.submitted.yaml").rename(run_dir / "config.yaml")


def test_a_job_submitted_from_inside_an_allocation_does_not_inherit_its_sizes(
    login_node: Path, words: list[str], tmp_path: Path
) -> None:
    program(login_node, "sbatch", f"export -p > {tmp_path}/environment; echo 42")
    inside = {"SLURM_NTASKS": "7", "SLURM_CONF": "/etc/x.conf", "SBATCH_CONSTRAINT": "h100"}
    assert submit(login_node, *words, environment=inside).returncode == 0
    environment = (tmp_path / "environment").read_text()
    assert "SLURM_NTASKS" not in environment
    assert 'SLURM_CONF="/etc/x.conf"' in environment and "SBATCH_CONSTRAINT" in environment


def test_git_state_of_this_clone() -> None:
    state = git_state()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        assert state == {"git_commit": None, "git_dirty": None}
    else:
        assert state["git_commit"] == head.stdout.strip() and isinstance(state["git_dirty"], bool)


def test_a_dataset_job_that_is_restarted_for_ever_stops(tmp_path: Path) -> None:
    ended = restarted("shards.sbatch", tmp_path, 21)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "job 42 was restarted 21 times, more than 20" in ended.stderr


def test_a_training_that_is_restarted_without_progress_stops(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    latest = tmp_path / "checkpoints" / "latest"
    for times in range(100):  # each with a new checkpoint
        latest.write_text(f"step_{times:08d}\n")
        assert "restarted" not in restarted("train.sbatch", tmp_path, times).stderr
    told = [restarted("train.sbatch", tmp_path, 100 + times) for times in range(6)]
    assert ["restarted" in ended.stderr for ended in told] == [False] * 5 + [True]
    assert told[-1].returncode == 1
    assert "6 times in a row without a new checkpoint (latest: step_00000099)" in told[-1].stderr
    for damaged in ("", "step_00000099", "step_00000099 six"):
        (tmp_path / "restarts").write_text(damaged)
        ended = restarted("train.sbatch", tmp_path, 3)
        assert "was restarted" not in ended.stderr and "NODELIST" in ended.stderr  # went on
        assert re.fullmatch(r"step_00000099 [01]\n", (tmp_path / "restarts").read_text())
    # submitted anew, it may try again
    assert "restarted" not in restarted("train.sbatch", tmp_path, 0).stderr


def shards(tmp_path: Path) -> list[str]:
    (tmp_path / "queries.txt").write_text("red panda\n")
    return [
        "--shards",
        f"queries.path={tmp_path / 'queries.txt'}",
        f"out_dir={tmp_path / 'data'}",
        "source=commons",
        "sources.contact=tests@example.org",
    ]


def test_a_dataset_job(login_node: Path, tmp_path: Path) -> None:
    words = shards(tmp_path)
    program(login_node, "sbatch", "echo 42")
    where = ["cluster.partition=cpu", "cluster.cpus_per_rank=4", "cluster.time_limit=8:00:00"]
    ended = submit(login_node, *words, *where)
    assert ended.returncode == 0, ended.stderr
    (entry,) = json.loads((tmp_path / "data" / "submit.json").read_text())
    command = entry["jobs"][0]["command"]
    cut = len(command) - len(words) - 1
    options, arguments = command[:cut], command[cut:]
    assert {"--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=4"} <= set(options)
    assert {"--partition=cpu", "--time=8:00:00", "--job-name=data"} <= set(options)
    assert options[-1] == f"{ROOT}/slurm/shards.sbatch"
    assert arguments == [str(tmp_path / "data"), "data_tools.build", *words[1:]]
    # data_tools.build freezes its own configuration
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "setup.sh",
        "submit.json",
    ]


def test_a_dataset_job_with_errors_in_both_halves(login_node: Path, tmp_path: Path) -> None:
    words = [*shards(tmp_path), "crawl.encode_quality=0", "cluster=one_node", "cluster.qos=x"]
    ended = submit(login_node, *words, "cluster.time_limit=0")
    assert ended.returncode == 2
    for problem in ("crawl.encode_quality = 0", "cluster.time_limit = 0", "without GPUs"):
        assert problem in ended.stderr
    assert not (tmp_path / "data").exists()


ECHO_NUMBERS = "n=$(cat {0}/n 2>/dev/null || echo 40); echo $((n + 1)) | tee {0}/n"


def test_a_dataset_job_in_tasks_is_a_chain(login_node: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.csv"
    pool.write_text("url,caption\nhttp://example.org/1.jpg,a red panda\n")
    words = [*shards(tmp_path), f"sources.pool.paths=['{pool}']"]
    words[words.index("source=commons")] = "source=[commons,pool]"
    program(login_node, "sbatch", ECHO_NUMBERS.format(tmp_path))
    (login_node / "cat").symlink_to("/usr/bin/cat")
    (login_node / "tee").symlink_to("/usr/bin/tee")
    ended = submit(login_node, *words, "--tasks", "8%4")
    told = ended.stdout
    assert ended.returncode == 0, ended.stderr
    assert (
        "jobs queries 41, match 42, balance 43, crawl 44, retry_1 45, rebalance 46, pack 47, "
        "report 48" in told
    )
    (entry,) = json.loads((tmp_path / "data" / "submit.json").read_text())
    commands = {job["name"]: job["command"] for job in entry["jobs"]}
    assert not any(word.startswith("--dependency") for word in commands["queries"])
    assert "--dependency=afterok:41" in commands["match"] and "--array=0-7%4" in commands["match"]
    assert "--dependency=afterok:43" in commands["crawl"] and "crawl" in commands["crawl"]
    assert "--dependency=afterok:44" in commands["retry_1"]
    assert "--array=0-7%4" in commands["retry_1"] and "crawl" in commands["retry_1"]
    assert not any(word.startswith("--array") for word in commands["balance"])
    at = commands["balance"].index("data_tools.build")
    assert commands["balance"][at + 1 : at + 3] == ["--until", "balance"]
    program(login_node, "squeue", '[[ "$*" == *=43* ]] && echo PENDING')
    refused = submit(login_node, *words)
    assert refused.returncode == 1 and "its job 43 is pending" in refused.stderr


def test_a_chain_that_is_refused_in_the_middle_leaves_no_job(
    login_node: Path, tmp_path: Path
) -> None:
    program(login_node, "sbatch", '[[ "$*" == *--array* ]] && { echo no >&2; exit 1; }; echo 42')
    program(login_node, "scancel", f"echo $1 > {tmp_path}/cancelled")
    ended = submit(login_node, *shards(tmp_path), "--tasks", "8")
    assert ended.returncode == 1 and "sbatch refused" in ended.stderr
    assert (tmp_path / "cancelled").read_text() == "42\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("tasks", ["0", "8%0", "x"])
def test_a_number_of_tasks_that_is_none(login_node: Path, tmp_path: Path, tasks: str) -> None:
    ended = submit(login_node, *shards(tmp_path), "--tasks", tasks)
    assert ended.returncode == 2 and f"--tasks {tasks}: give N" in ended.stderr


def test_tasks_of_a_training_are_refused(login_node: Path, words: list[str]) -> None:
    ended = submit(login_node, *words, "--tasks", "8")
    assert ended.returncode == 2 and "only a data set is divided" in ended.stderr

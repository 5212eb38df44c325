"""Scores of a real run, in real processes: what an evaluation keeps, needs and makes up."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import cv2
import pytest

from data_tools.ground import exit_codes
from tests.integration.runs import metrics, run, start, tiny_shards, wait_until
from tests.pipeline.data.eval_sets import write_classification, write_retrieval
from tests.pipeline.model.model_configs import random_images

ANIMALS = ["owl", "fox", "moth", "crab", "newt", "hare", "wren"]


def pictures(number: int) -> list[bytes]:
    images = random_images(number, 36).permute(0, 2, 3, 1).contiguous().numpy()
    return [cv2.imencode(".png", image)[1].tobytes() for image in images]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets `animals` and `captions`, and a run of two ranks that was scored on
    both at its last step, 9; its training data is gone."""
    folder = tmp_path_factory.mktemp("evaluate")
    images = pictures(21)
    write_classification(folder / "animals", images, [i % 7 for i in range(21)], ANIMALS)
    write_retrieval(folder / "captions", images[:11], [[f"picture {i}", "one"] for i in range(11)])
    write_classification(folder / "one", images[:1], [0], ANIMALS[:1])
    write_retrieval(folder / "pair", images[:2], [["an owl"], ["a fox"]])
    manifest = tiny_shards(folder / "data")
    ended = run(
        "experiment=tiny",
        f"data.manifest={manifest}",
        f"run_dir={folder / 'run'}",
        "train.steps=9",
        "train.ema_decay=0.5",
        "checkpoint.every_steps=4",
        f"eval.datasets=[{folder / 'animals'},{folder / 'captions'}]",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shutil.rmtree(folder / "data")
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def evaluated(*words: str) -> str:
    ended = run(*words, module="pipeline.evaluate")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def scores(run_dir: Path, step: int) -> dict[str, dict]:
    return json.loads((run_dir / "eval" / f"step_{step:08d}.json").read_text())["results"]


@pytest.mark.slow
def test_one_set_alone_on_three_ranks_keeps_the_others_and_the_configuration(
    run_dir: Path, trained: Path
) -> None:
    before, config = scores(run_dir, 9), (run_dir / "config.yaml").read_bytes()
    words = [f"run_dir={run_dir}", "cluster.ranks_per_node=3", "eval.batch_size=2"]
    told = evaluated(*words, f"eval.datasets=[{trained / 'captions'}]")
    assert "scoring the average of the weights of step 9" in told
    assert scores(run_dir, 9) == before and set(before) == {"animals", "captions"}
    told = evaluated(*words, "step=8", "ema=false", f"eval.datasets=[{trained / 'pair'}]")
    assert "scoring the weights of step 8" in told
    assert set(scores(run_dir, 8)) == {"pair (ema=false)"} and scores(run_dir, 9) == before
    page = (run_dir / "report.html").read_text()
    assert "<td>captions</td>" in page and "<td>pair (ema=false) (step 8)</td>" in page
    assert (run_dir / "config.yaml").read_bytes() == config


@pytest.mark.slow
def test_fewer_samples_and_classes_than_ranks(run_dir: Path, trained: Path) -> None:
    evaluated(
        f"run_dir={run_dir}",
        "cluster.ranks_per_node=3",
        f"eval.datasets=[{trained / 'one'},{trained / 'pair'}]",
    )
    found = scores(run_dir, 9)
    assert found["one"]["num_samples"] == 1 and found["one"]["top1"] == 1.0
    assert found["pair"]["image_to_text_r5"] == 1.0


@pytest.mark.slow
def test_every_broken_set_is_named_and_nothing_is_written(run_dir: Path, trained: Path) -> None:
    empty = run_dir.parent / "empty"
    empty.mkdir()
    few = Path(shutil.copytree(trained / "animals", run_dir.parent / "few"))
    (few / "classnames.txt").write_text("owl\nfox")
    before = {path: path.read_bytes() for path in (run_dir / "eval").glob("*.json")}
    for sets, code, told in (
        ([empty, few], 2, f"{empty} has no test/nshards.txt"),
        ([few, trained / "animals"], 1, "classnames.txt names 2 classes"),
    ):
        words = f"eval.datasets=[{','.join(map(str, sets))}]"
        ended = run(f"run_dir={run_dir}", words, module="pipeline.evaluate")
        assert ended.returncode == code and "Traceback" not in ended.stderr
        assert told in ended.stderr
    assert {path: path.read_bytes() for path in (run_dir / "eval").glob("*.json")} == before


@pytest.mark.slow
def test_a_full_disk_or_a_lost_permission_is_told_after_the_table(
    run_dir: Path, trained: Path
) -> None:
    shutil.rmtree(run_dir / "eval")
    (run_dir / "eval").write_text("in the way")
    ended = run(
        f"run_dir={run_dir}", f"eval.datasets=[{trained / 'one'}]", module="pipeline.evaluate"
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert "top-1" in ended.stdout
    assert f"{run_dir}: the scores cannot be written" in ended.stderr


def resumed(trained: Path, run_dir: Path, *words: str) -> str:
    if not (trained / "data").exists():
        tiny_shards(trained / "data")
    ended = run(f"run_dir={run_dir}", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def scored_in_metrics(run_dir: Path) -> list[tuple[float, float]]:
    lines = metrics(run_dir)
    return [
        (line["step"], line["eval/animals/top1"]) for line in lines if "eval/animals/top1" in line
    ]


@pytest.mark.slow
def test_scores_that_a_kill_swallowed_are_made_up(run_dir: Path, trained: Path) -> None:
    """The files are those of a run that was killed when its last checkpoint was whole."""
    before, logged = scores(run_dir, 9), scored_in_metrics(run_dir)
    shutil.rmtree(run_dir / "eval")
    path = run_dir / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines(True) if '"eval/' not in line]
    path.write_text("".join(lines))
    told = resumed(trained, run_dir)
    assert "step 9 is not evaluated: a stop came before" in told
    assert scores(run_dir, 9) == before
    assert scored_in_metrics(run_dir) == logged and len(logged) == 1
    again = resumed(trained, run_dir)
    assert "not evaluated" not in again and "try next" in again


@pytest.mark.slow
def test_killed_in_the_middle_of_its_evaluation(trained: Path, tmp_path: Path) -> None:
    many = pictures(3)
    write_classification(tmp_path / "many", many * 400, [0] * 1200, ANIMALS)
    run_dir, log = tmp_path / "run", tmp_path / "log"
    words = [f"run_dir={run_dir}", "train.steps=6", "eval.batch_size=1"]
    if not (trained / "data").exists():
        tiny_shards(trained / "data")
    process = start(
        "experiment=tiny",
        f"data.manifest={trained / 'data' / 'manifest.json'}",
        f"eval.datasets=[{tmp_path / 'many'}]",
        *words,
        log=log,
    )
    wait_until((run_dir / "checkpoints" / "step_00000006").exists, process, log)
    time.sleep(0.2)
    process.kill()
    process.wait(60)
    assert not list(run_dir.glob("eval/step_*"))
    assert "step 6 is not evaluated: a stop came before" in resumed(trained, run_dir)
    assert scores(run_dir, 6)["many"]["num_samples"] == 1200


@pytest.mark.slow
def test_a_stop_leaves_the_evaluation_to_the_next_start(trained: Path, tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    if not (trained / "data").exists():
        tiny_shards(trained / "data")
    process = start(
        "experiment=tiny",
        f"data.manifest={trained / 'data' / 'manifest.json'}",
        f"eval.datasets=[{trained / 'animals'}]",
        "eval.every_steps=1",
        f"run_dir={run_dir}",
        log=log,
    )
    wait_until((run_dir / "eval" / "step_00000002.json").exists, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == exit_codes.STOPPED, log.read_text()
    steps = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    last = int(steps[-1].removeprefix("step_"))
    assert not (run_dir / "eval" / f"step_{last:08d}.json").exists()
    told = resumed(trained, run_dir, "train.steps=20")
    assert f"step {last} is not evaluated: a stop came before" in told
    assert [step for step, _ in scored_in_metrics(run_dir)] == list(range(1, 21))

"""A run's folder between starts: its configuration, its lock, what a start that fails leaves."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.runs import last_step, metrics, run, start, tiny_shards, wait_until
from tests.pipeline.data.eval_sets import write_classification
from tests.pipeline.data.made_shards import jpeg

pytestmark = pytest.mark.slow  # each trains, 12 s a start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and two evaluation sets, one of which nothing can open."""
    folder = tmp_path_factory.mktemp("one_run")
    tiny_shards(folder)
    pictures, labels = [jpeg(number) for number in range(6)], [0, 1] * 3
    write_classification(folder / "whole", pictures, labels, ["a", "b"])
    write_classification(folder / "broken", pictures, labels, ["a", "b"], templates=["no place"])
    return folder


def begin(data: Path, run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given = ["experiment=tiny", f"data.manifest={data / 'manifest.json'}", f"run_dir={run_dir}"]
    return run(*given, "cluster.ranks_per_node=1", *words)


def test_what_does_not_train_changes_no_configuration(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    failed = begin(data, run_dir, "train.steps=6", f"eval.datasets=[{data / 'broken'}]")
    assert failed.returncode == 1 and "broken" in failed.stderr, failed.stderr
    assert not (run_dir / "config.yaml").exists()
    first = begin(data, run_dir, "train.steps=6", "train.lr=0.002")
    assert first.returncode == 0, first.stderr
    text = (run_dir / "config.yaml").read_text()

    def unchanged(code: int, *words: str, module: str = "pipeline.train") -> str:
        ended = run(f"run_dir={run_dir}", *words, module=module)
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert (run_dir / "config.yaml").read_text() == text
        return ended.stdout + ended.stderr

    whole, broken = (f"eval.datasets=[{data / name}]" for name in ("whole", "broken"))
    unchanged(0, whole, "cluster.ranks_per_node=2", module="pipeline.evaluate")
    unchanged(1, broken, module="pipeline.evaluate")
    unchanged(2, "train.steps=8", "train.seed=3", "force=[train.steps]")
    unchanged(1, "train.steps=8", "force=[train.steps]", broken)
    longer = run(f"run_dir={run_dir}", "train.steps=8", "force=[train.steps]")
    assert longer.returncode == 0 and "goes on from step 6" in longer.stderr, longer.stderr
    assert "steps: 8" in (run_dir / "config.yaml").read_text()


def test_the_second_start_of_a_run_is_refused_and_names_the_first(
    data: Path, tmp_path: Path
) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    manifest = f"data.manifest={data / 'manifest.json'}"
    words = ["experiment=tiny", manifest, f"run_dir={run_dir}", "train.steps=5000"]
    first = start(*words, "checkpoint.every_steps=5000", log=log)
    wait_until(lambda: last_step(run_dir) >= 3, first, log)
    for second in (run(f"run_dir={run_dir}"), run(*words, "checkpoint.every_steps=5000")):
        assert second.returncode == 2, second.stderr
        assert f"being trained already (process {first.pid} on " in second.stderr
        assert re.search(r"since 20\d\d-\d\d-\d\dT", second.stderr)
        assert "starting" not in second.stderr
    assert first.poll() is None
    first.kill()
    first.wait(timeout=60)
    # nothing of it holds the lock any more, and it saved nothing: the run begins again
    before = last_step(run_dir)
    again = run(f"run_dir={run_dir}", "train.steps=4", "checkpoint.every_steps=2")
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in metrics(run_dir)] == [1, 2, 3, 4]
    kept = (run_dir / "metrics.1.jsonl").read_text().splitlines()
    assert json.loads(kept[-1])["step"] == before
    assert "metrics.1.jsonl has the metrics of the start before" in again.stderr

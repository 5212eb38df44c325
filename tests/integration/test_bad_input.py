"""What a person gets wrong before a training: one clear message, a non-zero exit, no hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.runs import run, tiny_shards


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tiny_shards(tmp_path / "data")


def refused(*overrides: str) -> str:
    ended = run("experiment=tiny", *overrides)
    assert ended.returncode != 0, ended.stdout
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.count("error:") + ended.stderr.count("error (rank") >= 1, ended.stderr
    return ended.stderr


def test_a_global_batch_that_ranks_cannot_share(manifest: Path, tmp_path: Path) -> None:
    told = refused(
        f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}", "train.global_batch_size=17"
    )
    assert "train.global_batch_size = 17" in told and "16 or 18" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_fewer_samples_than_a_global_batch(manifest: Path, tmp_path: Path) -> None:
    told = refused(
        f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}", "train.global_batch_size=64"
    )
    assert "50" in told and "64" in told


@pytest.mark.slow
def test_a_truncated_shard(manifest: Path, tmp_path: Path) -> None:
    shard = manifest.parent / "shards" / "000003.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    told = refused(f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}")
    assert "shards/000003.tar" in told


@pytest.mark.slow
def test_a_shard_of_garbage(manifest: Path, tmp_path: Path) -> None:
    shard = manifest.parent / "shards" / "000003.tar"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    told = refused(f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}")
    assert "000003.tar" in told and "data.max_bad_fraction" in told


@pytest.mark.slow
def test_a_manifest_edited_by_hand(manifest: Path, tmp_path: Path) -> None:
    content = json.loads(manifest.read_text())
    content["num_samples"] += 1
    manifest.write_text(json.dumps(content))
    told = refused(f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}")
    assert "num_samples" in told and str(manifest) in told


@pytest.mark.slow
def test_resuming_on_other_data(manifest: Path, tmp_path: Path) -> None:
    overrides = ["experiment=tiny", f"run_dir={tmp_path / 'run'}", "train.steps=5"]
    ended = run(*overrides, f"data.manifest={manifest}")
    assert ended.returncode == 0, ended.stderr
    tiny_shards(manifest.parent, num_samples=60)
    told = run(*overrides, f"data.manifest={manifest}")
    assert told.returncode != 0 and "data_fingerprint" in told.stderr, told.stderr


@pytest.mark.slow
def test_evaluating_a_run_without_checkpoint(manifest: Path, tmp_path: Path) -> None:
    ended = run(
        "experiment=tiny",
        f"data.manifest={manifest}",
        f"run_dir={tmp_path / 'run'}",
        module="pipeline.evaluate",
    )
    assert ended.returncode != 0 and "no checkpoint yet; train first" in ended.stderr
    assert "Traceback" not in ended.stderr

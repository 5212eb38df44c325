"""Opening a data set: every fault is told, by one rank or another."""

from __future__ import annotations

import json
import os

import pytest

from data_tools.dataset.manifest import ManifestError, load_manifest
from pipeline.data.shards import dataset
from pipeline.data.shards.dataset import open_dataset
from tests.pipeline.data.made_shards import make_samples, write_shards


def test_it_is_the_manifest(tmp_path):
    path = write_shards(tmp_path, make_samples(9), per_shard=3)
    opened = open_dataset(str(path))
    assert opened.manifest == load_manifest(path) and opened.num_samples == 9
    assert opened.name == str(tmp_path)


def test_a_path_in_the_working_folder(tmp_path, monkeypatch):
    write_shards(tmp_path, make_samples(3), per_shard=3)
    monkeypatch.chdir(tmp_path)
    assert open_dataset("manifest.json").num_samples == 3


@pytest.mark.parametrize("slow_stat_s", [0.0, 1.0], ids=["threads", "one after the other"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_ranks_together_look_at_every_shard(tmp_path, monkeypatch, world_size, slow_stat_s):
    monkeypatch.setattr(dataset, "_SLOW_STAT_S", slow_stat_s)
    path = write_shards(tmp_path, make_samples(12), per_shard=2)
    os.truncate(tmp_path / "shards/000001.tar", 100)
    os.unlink(tmp_path / "shards/000002.tar")
    os.unlink(tmp_path / "shards/000005.index.parquet")
    told = []
    for rank in range(world_size):
        try:
            open_dataset(str(path), rank, world_size)
        except ManifestError as error:
            told.append(str(error))
    for problem in (
        "shard shards/000001.tar has 100 bytes",
        "shard shards/000002.tar is missing",
        "index shards/000005.index.parquet is missing",
    ):
        assert sum(problem in text for text in told) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format_version": 9}, "format_version is 9"),
        ({"num_samples": 1}, "edited by hand"),
        ({"shards": [{"path": "x"}]}, "not a manifest of format 1"),
        ({"shards": None}, "not a manifest of format 1"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, change, message):
    path = write_shards(tmp_path, make_samples(3), per_shard=3)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestError, match=message):
        open_dataset(str(path))
    with pytest.raises(ManifestError, match="no manifest at .*give the manifest.json"):
        open_dataset(str(tmp_path / "nothing" / "manifest.json"))


def test_many_missing_shards_are_counted(tmp_path):
    path = write_shards(tmp_path, make_samples(30), per_shard=1)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(ManifestError, match=r"\+20 more"):
        open_dataset(str(path))

from __future__ import annotations

import json
import shutil

import pytest

from data_tools import pack
from data_tools.dataset.manifest import (
    ManifestError,
    load_manifest,
    save_manifest,
    verify_checksums,
)
from data_tools.tables.schema import DatasetPaths
from tests.data_tools.stages import curated_job, make_job


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("manifest")
    paths = curated_job(root)
    pack.run(make_job(root), paths)
    return paths


@pytest.fixture
def own(packed, tmp_path) -> DatasetPaths:
    shutil.copytree(packed.root, tmp_path / "own")
    return DatasetPaths(tmp_path / "own")


def edit(paths: DatasetPaths, **changes: object) -> None:
    content = json.loads(paths.manifest.read_text())
    paths.manifest.write_text(json.dumps({**content, **changes}))


def shards_of(paths: DatasetPaths) -> list[dict]:
    entries: list[dict] = json.loads(paths.manifest.read_text())["shards"]
    return entries


def test_a_manifest_comes_back_as_it_was_saved(packed, tmp_path):
    manifest = load_manifest(packed.manifest)
    assert (manifest.num_samples, len(manifest.shards)) == (242, 3)
    shutil.copytree(packed.root, tmp_path / "copy")
    save_manifest(manifest, tmp_path / "copy" / "manifest.json")
    copy = load_manifest(str(tmp_path / "copy" / "manifest.json"))
    assert copy.shards == manifest.shards
    assert copy.root == tmp_path / "copy", "paths are relative to where the manifest lies"
    assert copy.fingerprint == manifest.fingerprint
    verify_checksums(copy)


def test_another_sample_is_another_fingerprint(own):
    before = load_manifest(own.manifest).fingerprint
    entries = shards_of(own)
    entries[0]["sha256"] = "0" * 64
    edit(own, shards=entries)
    assert load_manifest(own.manifest).fingerprint != before
    entries = shards_of(own)
    edit(own, shards=[entries[1], entries[0], entries[2]])
    assert load_manifest(own.manifest).fingerprint != before, "their order counts"


def test_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match="no manifest at .*manifest.json: give the manifest"):
        load_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1}', "null"])
def test_what_is_no_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ManifestError, match="is not a manifest of format 1"):
        load_manifest(tmp_path / "manifest.json")


def test_a_version_of_tomorrow(own):
    edit(own, format_version=2)
    with pytest.raises(ManifestError, match="format_version is 2, this code reads 1"):
        load_manifest(own.manifest)


def test_a_total_edited_by_hand(own):
    edit(own, num_samples=243)
    with pytest.raises(ManifestError, match="not the sum over the shards: edited by hand"):
        load_manifest(own.manifest)


def test_an_entry_edited_by_hand_names_the_shard(own):
    entries = shards_of(own)
    entries[1]["num_bytes"] += 1
    edit(own, shards=entries, num_bytes=sum(entry["num_bytes"] for entry in entries))
    with pytest.raises(ManifestError, match="shard shards/000001.tar has .* were packed"):
        load_manifest(own.manifest)


def test_a_checksum_edited_by_hand_names_the_shard(own):
    entries = shards_of(own)
    entries[2]["sha256"] = entries[0]["sha256"]
    edit(own, shards=entries)
    with pytest.raises(
        ManifestError, match="checksums differ .*: shards/000002.tar: pack .* again"
    ):
        verify_checksums(load_manifest(own.manifest))


def test_every_missing_file_is_named_at_once(own):
    (own.shards / "000000.tar").unlink()
    (own.shards / "000002.index.parquet").unlink()
    with pytest.raises(ManifestError) as error:
        load_manifest(own.manifest)
    assert "shard shards/000000.tar is missing" in str(error.value)
    assert "index shards/000002.index.parquet is missing" in str(error.value)


def test_saving_is_whole_or_nothing(own, monkeypatch):
    """A manifest that can't be written leaves the old one."""
    before = own.manifest.read_bytes()
    manifest = load_manifest(own.manifest)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_manifest(manifest, own.manifest)
    assert own.manifest.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_samples", "100"),
        ("num_samples", -1),
        ("num_bytes", 1.5),
        ("path", 7),
        ("sha256", None),
    ],
)
def test_a_senseless_value_names_shard_and_field(own, field, value):
    entries = shards_of(own)
    entries[1][field] = value
    edit(own, shards=entries)
    with pytest.raises(ManifestError, match=f"{field} of shard"):
        load_manifest(own.manifest)


def test_a_shard_that_is_listed_twice_is_named(own):
    entries = shards_of(own)
    edit(own, shards=[*entries, entries[0]])
    with pytest.raises(ManifestError, match="shard shards/000000.tar is there 2 times"):
        load_manifest(own.manifest)

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash

from data_tools import pack
from data_tools.balance import unit_hashes
from data_tools.dataset.manifest import INDEX, Manifest, load_manifest, verify_checksums
from data_tools.pack import stage
from data_tools.pack.shards import METADATA
from data_tools.tables.schema import (
    BALANCED,
    FATES,
    KEPT,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from tests.data_tools.stages import curated_job, image_of, make_job


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> DatasetPaths:
    """242 samples in shards of 100. Tests read it and change nothing."""
    root = tmp_path_factory.mktemp("packed")
    paths = curated_job(root)
    counts = pack.run(make_job(root), paths)
    assert (counts["samples"], counts["shards"]) == (242, 3)
    return paths


@pytest.fixture
def own(packed, tmp_path) -> DatasetPaths:
    """A copy to be broken."""
    shutil.copytree(packed.root, tmp_path / "own")
    return DatasetPaths(tmp_path / "own")


def keys_in_order(manifest: Manifest) -> list[str]:
    tables = [pq.read_table(manifest.index_path(shard)) for shard in manifest.shards]
    return pa.concat_tables(tables)["key"].to_pylist()


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_packing_twice_gives_equal_bytes(packed, tmp_path):
    """Another folder, another order of the balanced table, another time."""
    paths = curated_job(tmp_path)
    curated = read_table(paths.table("balanced"), BALANCED)
    write_table(curated.sort_by("sha256"), paths.table("balanced"), BALANCED)
    pack.run(make_job(tmp_path), paths)
    assert bytes_of(paths.shards) == bytes_of(packed.shards)
    assert paths.manifest.read_bytes() == packed.manifest.read_bytes()


def test_another_seed_is_another_order_of_the_same_samples(packed, tmp_path):
    paths = curated_job(tmp_path)
    job = make_job(tmp_path)
    job.pack.seed = 1
    pack.run(job, paths)
    ours, theirs = (keys_in_order(load_manifest(p.manifest)) for p in (paths, packed))
    assert ours != theirs and sorted(ours) == sorted(theirs)


def test_samples_lie_in_the_order_of_the_seeded_hash(packed):
    manifest = load_manifest(packed.manifest)
    assert [shard.num_samples for shard in manifest.shards] == [100, 100, 42]
    keys = keys_in_order(manifest)
    assert keys == sorted(keys, key=lambda uid: xxhash.xxh64_intdigest(f"pack/{uid}".encode(), 0))
    assert set(keys) == set(read_table(packed.table("balanced"), BALANCED)["uid"].to_pylist())


def test_the_order_does_not_follow_balancing(packed):
    """Were both by one hash, the pairs of frequent queries would all come first."""
    keys = keys_in_order(load_manifest(packed.manifest))
    positions = np.flatnonzero(unit_hashes(keys, seed=0) < 0.2) / len(keys)
    assert len(positions) > 20 and 0.3 < positions.mean() < 0.7


def test_webdataset_reads_the_same_keys_and_bytes(packed):
    manifest = load_manifest(packed.manifest)
    shards = [str(manifest.shard_path(shard)) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == keys_in_order(manifest)
    rows = {row["uid"]: row for row in read_table(packed.table("kept"), KEPT).to_pylist()}
    for sample in samples:
        row = rows[sample["__key__"]]
        number = int(row["url"].split("/")[-1].split(".")[0])
        assert sample["jpg"] == image_of(number)
        assert sample["txt"].decode() == row["caption"]


def test_json_holds_where_it_came_from(packed):
    manifest = load_manifest(packed.manifest)
    rows = {row["uid"]: row for row in read_table(packed.table("kept"), KEPT).to_pylist()}
    curated = {
        row["uid"]: row for row in read_table(packed.table("balanced"), BALANCED).to_pylist()
    }
    with tarfile.open(manifest.shard_path(manifest.shards[0])) as archive:
        for member in archive:
            if not member.name.endswith(".json"):
                continue
            uid = member.name.removesuffix(".json")
            content = json.load(archive.extractfile(member))  # type: ignore[arg-type]
            for name in ("url", "page_url", "license", "attribution", "source", "query_ids"):
                assert content[name] == rows[uid][name]
            for name in ("width", "height", "original_width", "original_height", "sha256"):
                assert content[name] == curated[uid][name]
            assert content["keep_probability"] == pytest.approx(rows[uid]["keep_probability"])
            assert len(str(content["keep_probability"])) < 10
            assert set(content) == set(METADATA)


def test_headers_depend_on_nothing_but_the_content(packed):
    manifest = load_manifest(packed.manifest)
    for shard in manifest.shards:
        with tarfile.open(manifest.shard_path(shard)) as archive:
            members = archive.getmembers()
        assert len(members) == 3 * shard.num_samples
        names = [member.name for member in members]
        assert [n.partition(".")[2] for n in names] == ["jpg", "json", "txt"] * shard.num_samples
        for m in members:
            assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644)
            assert m.pax_headers == {} and m.offset_data == m.offset + 512


def test_the_index_points_at_every_member(packed):
    manifest = load_manifest(packed.manifest)
    for shard in manifest.shards:
        content = manifest.shard_path(shard).read_bytes()
        index = pq.read_table(manifest.index_path(shard))
        assert index.schema.equals(INDEX)
        with tarfile.open(manifest.shard_path(shard)) as archive:
            for row in index.to_pylist():
                for column, extension in (("image", "jpg"), ("text", "txt"), ("json", "json")):
                    member = archive.extractfile(f"{row['key']}.{extension}")
                    start = row[f"{column}_offset"]
                    assert member is not None
                    assert content[start : start + row[f"{column}_size"]] == member.read()


def test_sizes_json_is_what_open_clip_reads(packed):
    sizes = json.loads((packed.shards / "sizes.json").read_text())
    assert sizes == {"000000.tar": 100, "000001.tar": 100, "000002.tar": 42}


def test_fates(packed):
    fates = read_table(packed.fates("pack"), FATES).to_pylist()
    assert len(fates) == 242 and {row["status"] for row in fates} == {"packed"}
    assert fates[0]["detail"] == "shards/000000.tar"


def test_checksums_hold(packed):
    verify_checksums(load_manifest(packed.manifest))


def snapshot(paths: DatasetPaths) -> tuple[bytes, dict[str, str]]:
    return paths.manifest.read_bytes(), bytes_of(paths.shards)


def test_the_same_job_is_replaced_whole(own):
    before = snapshot(own)
    (own.shards / "000007.tar").write_bytes(b"left by hand")
    pack.run(make_job(own.root), own)
    assert snapshot(own) == before
    assert not list(own.root.glob(".shards*")), "nothing is left aside"


def test_a_run_killed_before_the_manifest_is_repeated(own):
    before = snapshot(own)
    own.manifest.unlink()
    (own.root / ".shards.0000.tmp").mkdir()
    pack.run(make_job(own.root), own)
    assert snapshot(own) == before
    assert not list(own.root.glob(".shards*"))


def test_another_data_set_is_refused_and_untouched(own):
    record = own.table("packed").with_suffix(".json")
    record.unlink()  # as if another program, or another folder's build, had put it here
    before = snapshot(own)
    job = make_job(own.root)
    job.crawl.encode_quality = 80
    with pytest.raises(DataError, match="holds another data set.*give another out_dir, or delete"):
        pack.run(job, own)
    own.manifest.write_text("{}")
    with pytest.raises(DataError, match="fingerprint unknown"):
        pack.run(make_job(own.root), own)
    own.manifest.write_bytes(before[0])
    assert snapshot(own) == before


def test_other_settings_put_the_earlier_data_set_away_whole(own, capsys):
    first = load_manifest(own.manifest)
    job = make_job(own.root)
    job.pack.seed = 5
    for _ in range(2):
        pack.run(job, own)
    second = load_manifest(own.manifest)
    verify_checksums(second)
    assert second.fingerprint != first.fingerprint
    place = own.root / "earlier" / first.config_fingerprint
    assert str(place) in capsys.readouterr().err
    verify_checksums(load_manifest(place / "manifest.json"))
    assert load_manifest(place / "manifest.json").fingerprint == first.fingerprint
    pack.run(make_job(own.root), own)
    assert load_manifest(own.manifest).fingerprint == first.fingerprint
    assert len(list((own.root / "earlier").iterdir())) == 2


@pytest.mark.parametrize("killed_at", ["replace", "rename"])
def test_killed_while_putting_away_loses_nothing(own, monkeypatch, killed_at):
    first = load_manifest(own.manifest)
    job = make_job(own.root)
    job.pack.seed = 5
    true = getattr(os, killed_at)

    def kill(source, target):
        true(source, target)
        if "earlier" in str(target):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, killed_at, kill)
    with pytest.raises(KeyboardInterrupt):
        pack.run(job, own)
    monkeypatch.undo()
    pack.run(job, own)
    verify_checksums(load_manifest(own.manifest))
    place = own.root / "earlier" / first.config_fingerprint / "manifest.json"
    assert load_manifest(place).fingerprint == first.fingerprint
    verify_checksums(load_manifest(place))


def test_settings_of_speed_and_place_are_not_another_data_set(own, tmp_path):
    job = make_job(own.root)
    job.crawl.threads, job.sources.contact, job.out_dir = 3, "b@example.org", "elsewhere"
    assert pack.run(job, own)["samples"] == 242


def test_somebody_elses_shards_are_refused(tmp_path):
    paths = curated_job(tmp_path)
    paths.shards.mkdir()
    (paths.shards / "holiday.tar").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds another data set"):
        pack.run(make_job(tmp_path), paths)
    assert (paths.shards / "holiday.tar").read_bytes() == b"mine"


def test_a_failure_leaves_the_old_data_set_whole(own):
    before = snapshot(own)
    (own.crawl / "part-00003" / "images" / "00000.tar").unlink()
    with pytest.raises(DataError, match="part-00003/images/00000.tar is gone"):
        pack.run(make_job(own.root), own)
    assert snapshot(own) == before
    (work,) = own.root.glob(".shards*")
    assert {file.suffix for file in work.iterdir()} <= {".parquet", ".tar", ".json"}, "all whole"
    verify_checksums(load_manifest(own.manifest))


def test_a_crawl_that_was_changed_is_not_packed(tmp_path):
    paths = curated_job(tmp_path)
    row = read_table(paths.table("balanced"), BALANCED).to_pylist()[0]
    with (paths.crawl / row["shard"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(b"\0" * 20)
    with pytest.raises(DataError, match="no JPEG at .* Delete its part and run the crawl again"):
        pack.run(make_job(tmp_path), paths)
    assert not paths.shards.exists() and not paths.manifest.exists()


def test_a_kept_table_that_lost_rows_is_refused(tmp_path):
    paths = curated_job(tmp_path)
    kept = read_table(paths.table("kept"), KEPT)
    write_table(kept.slice(5), paths.table("kept"), KEPT)
    with pytest.raises(DataError, match="some of 242 balanced pairs are not in"):
        pack.run(make_job(tmp_path), paths)
    assert not paths.shards.exists()


def test_nothing_curated_is_an_error(tmp_path):
    paths = curated_job(tmp_path)
    write_table(BALANCED.empty_table(), paths.table("balanced"), BALANCED)
    with pytest.raises(DataError, match="nothing to pack"):
        pack.run(make_job(tmp_path), paths)
    paths.table("balanced").unlink()
    with pytest.raises(DataError, match="run the rebalance stage first"):
        pack.run(make_job(tmp_path), paths)


def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing_half_written(own):
    """The limit on a file's size stands for the full disk: a write fails halfway through a
    shard."""
    before = snapshot(own)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="cannot write the data set.*Make room"):
            pack.run(make_job(own.root), own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(own) == before
    (work,) = own.root.glob(".shards*")
    assert [file.name for file in work.iterdir()] == ["order.parquet"]
    pack.run(make_job(own.root), own)
    assert snapshot(own) == before
    assert not list(own.root.glob(".shards*"))


def test_an_unwritable_target_is_told(tmp_path):
    """A file where the shards are to be written: that stops root, too."""
    paths = curated_job(tmp_path)
    work = stage.work_folder(paths, stage.data_fingerprint(make_job(tmp_path), paths))
    work.write_text("in the way")
    with pytest.raises(DataError, match="cannot write the data set below .*give another out_dir"):
        pack.run(make_job(tmp_path), paths)
    assert not paths.shards.exists() and not paths.manifest.exists()

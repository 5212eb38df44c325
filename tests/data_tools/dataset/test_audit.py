from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import audit, pack
from data_tools.dataset import audit as checks
from data_tools.dataset.manifest import INDEX, file_sha256, load_manifest, save_manifest
from data_tools.tables.schema import DatasetPaths
from tests.data_tools.stages import curated_job, make_job


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("audit")
    paths = curated_job(root)
    pack.run(make_job(root), paths)
    return paths


@pytest.fixture
def own(packed, tmp_path) -> DatasetPaths:
    shutil.copytree(packed.root, tmp_path / "own")
    return DatasetPaths(tmp_path / "own")


def check(paths: DatasetPaths, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = audit.main([str(paths.manifest)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def seal(paths: DatasetPaths, shard: int) -> None:
    """Write the manifest anew, as if the packer itself had made the shard like this."""
    manifest = load_manifest(paths.manifest)
    entries = list(manifest.shards)
    tar, index = manifest.shard_path(entries[shard]), manifest.index_path(entries[shard])
    entries[shard] = entries[shard]._replace(
        num_bytes=tar.stat().st_size,
        sha256=file_sha256(tar),
        index_sha256=file_sha256(index),
    )
    save_manifest(replace(manifest, shards=tuple(entries)), paths.manifest)


def test_a_good_data_set_from_the_command_line(packed):
    command = [sys.executable, "-m", "data_tools.audit", str(packed.manifest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "242 samples in 3 shards" in done.stdout and "hold" in done.stdout


def test_no_manifest(tmp_path, capsys):
    code, printed = check(DatasetPaths(tmp_path), capsys)
    assert code == 1 and "no manifest at" in printed


def test_a_flipped_bit_names_the_shard(own, capsys):
    manifest = load_manifest(own.manifest)
    with manifest.shard_path(manifest.shards[1]).open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    code, printed = check(own, capsys)
    assert code == 1
    assert "checksums differ" in printed and "shards/000001.tar" in printed
    assert "000000" not in printed and "000002" not in printed


def test_a_truncated_shard_names_it(own, capsys):
    manifest = load_manifest(own.manifest)
    tar = manifest.shard_path(manifest.shards[2])
    tar.write_bytes(tar.read_bytes()[:-2000])
    code, printed = check(own, capsys)
    assert code == 1 and "shards/000002.tar has" in printed


def test_an_index_that_lies_is_found_though_its_checksum_holds(own, capsys):
    manifest = load_manifest(own.manifest)
    index = manifest.index_path(manifest.shards[0])
    rows = pq.read_table(index).to_pylist()
    rows[5]["text_offset"] += 1
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), index)
    seal(own, 0)
    code, printed = check(own, capsys)
    assert code == 1
    assert f"shards/000000.tar: the text of {rows[5]['key']} is not where" in printed
    assert printed.count("error:") == 1


def test_a_missing_row_is_found(own, capsys):
    manifest = load_manifest(own.manifest)
    index = manifest.index_path(manifest.shards[0])
    pq.write_table(pq.read_table(index).slice(1), index)
    seal(own, 0)
    code, printed = check(own, capsys)
    assert code == 1
    assert "000000.index.parquet has 99 rows, the manifest 100" in printed
    assert "shards/000000.tar has 300 members, its index 297" in printed


def test_an_image_that_does_not_decode_is_found(own, capsys):
    """Same size, sealed anew: only decoding tells. All 242 samples are among the 256 decoded."""
    manifest = load_manifest(own.manifest)
    row = pq.read_table(manifest.index_path(manifest.shards[1])).to_pylist()[70]
    with manifest.shard_path(manifest.shards[1]).open("r+b") as file:
        file.seek(row["image_offset"])
        file.write(b"\0" * row["image_size"])
    seal(own, 1)
    code, printed = check(own, capsys)
    assert code == 1 and f"{row['key']}: the image does not decode" in printed
    assert audit.main([str(own.manifest), "--decode", "0"]) == 0


def test_a_caption_that_is_no_text_is_found(own, capsys):
    manifest = load_manifest(own.manifest)
    row = pq.read_table(manifest.index_path(manifest.shards[2])).to_pylist()[0]
    with manifest.shard_path(manifest.shards[2]).open("r+b") as file:
        file.seek(row["text_offset"])
        file.write(b"\xff")
    seal(own, 2)
    code, printed = check(own, capsys)
    assert code == 1 and f"{row['key']}: the text does not decode" in printed


def test_the_decoded_sample_is_spread_over_all_shards(own, monkeypatch):
    seen: list[tuple[str, list[int]]] = []

    def record(manifest, shard, wanted):
        seen.append((shard.path, list(wanted)))
        return []

    monkeypatch.setattr(checks, "_sample_problems", record)
    audit.audit(load_manifest(own.manifest), num_decoded=10)
    positions = [start + row for (_, rows), start in zip(seen, (0, 100, 200)) for row in rows]
    assert positions == list(range(0, 242, 24))


def test_what_lies_beside_the_shards_is_compared_too(own, capsys):
    """open_clip and webdataset go by the folder and by sizes.json."""
    (own.shards / "000009.tar").write_bytes(b"left by hand")
    (own.shards / "sizes.json").write_text('{"000000.tar": 100}')
    code, printed = check(own, capsys)
    assert code == 1
    assert "000009.tar lies among the shards and is not in the manifest" in printed
    assert "sizes.json does not hold the manifest's numbers" in printed


def test_a_folder_is_as_good_as_its_manifest(own, capsys):
    assert audit.main([str(own.root)]) == 0
    assert "242 samples in 3 shards" in capsys.readouterr().out


def test_two_processes_find_what_one_finds(own, capsys):
    manifest = load_manifest(own.manifest)
    with manifest.shard_path(manifest.shards[1]).open("r+b") as file:
        file.seek(5000)
        file.write(b"????")
    found = audit.audit(manifest, 256)
    assert found.problems and audit.audit(manifest, 256, processes=2) == found


def test_a_checksum_edited_by_hand_names_the_shard(own, capsys):
    text = own.manifest.read_text()
    digest = load_manifest(own.manifest).shards[2].sha256
    own.manifest.write_text(text.replace(digest, "f" * 64))
    code, printed = check(own, capsys)
    assert code == 1
    assert "checksums differ from the manifest: shards/000002.tar" in printed
    assert "000000.tar" not in printed and "000001.tar" not in printed

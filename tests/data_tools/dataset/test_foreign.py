"""Tars of somebody else: made with webdataset's own writer, and broken in every way."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from data_tools import audit
from data_tools.dataset.foreign import scan_tar
from data_tools.dataset.manifest import INDEX, load_manifest, verify_checksums
from tests.data_tools.crawl import pictures

Member = tuple[str, bytes]


def sample(key: str, **members: bytes) -> list[Member]:
    return [(f"{key}.{name}", content) for name, content in members.items()]


def write_tar(path: Path, members: list[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def good(key: str) -> list[Member]:
    return sample(key, jpg=pictures.jpeg(), txt=b"a caption")


@pytest.fixture
def foreign(tmp_path) -> Path:
    """Two tars as webdataset writes them: PAX headers, times, png, one without json."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"part-{shard}.tar"), encoder=False) as writer:
            for number in range(5):
                record = {"__key__": f"{shard}/{number:04d}", "txt": f"caption {number}".encode()}
                record["png" if number == 2 else "jpg"] = (
                    pictures.png() if number == 2 else pictures.jpeg(40 + number)
                )
                if number != 3:
                    record["json"] = json.dumps({"number": number}).encode()
                writer.write(record)
    return folder


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = audit.main([*map(str, arguments), "--processes", "1"])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.slow
def test_a_plain_webdataset_gets_a_manifest_and_training_reads_it(foreign):
    before = {path.name: path.read_bytes() for path in foreign.iterdir()}
    command = [sys.executable, "-m", "data_tools.audit", str(foreign)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "10 samples in 2 shards" in done.stdout
    assert {name: (foreign / name).read_bytes() for name in before} == before
    manifest = load_manifest(foreign / "manifest.json")
    verify_checksums(manifest)
    tars = [str(path) for path in sorted(foreign.glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    number = 0
    for shard in manifest.shards:
        index = pq.read_table(manifest.index_path(shard))
        assert index.schema.equals(INDEX)
        content = manifest.shard_path(shard).read_bytes()
        for row in index.to_pylist():
            theirs = samples[number]
            number += 1
            assert row["key"] == theirs["__key__"]
            for part, names in (("image", ("jpg", "png")), ("text", ("txt",)), ("json", ("json",))):
                wanted = next((theirs[name] for name in names if name in theirs), None)
                start, size = row[f"{part}_offset"], row[f"{part}_size"]
                assert (content[start : start + size] if size >= 0 else None) == wanted
    assert number == 10


def test_a_second_look_is_an_audit(foreign, capsys):
    assert run(foreign, capsys=capsys)[0] == 0
    with (foreign / "part-1.tar").open("r+b") as file:
        file.seek(2500)
        file.write(b"\0\1\2\3")
    code, printed = run(foreign, capsys=capsys)
    assert code == 1 and "checksums differ from the manifest: part-1.tar" in printed
    assert "part-0.tar" not in printed


def test_tars_that_cannot_be_written_beside(foreign, tmp_path, capsys):
    output = tmp_path / "elsewhere"
    assert run(foreign, "--output", output, capsys=capsys)[0] == 0
    assert {path.name for path in foreign.iterdir()} == {"part-0.tar", "part-1.tar"}
    manifest = load_manifest(output / "manifest.json")
    assert manifest.num_samples == 10
    assert manifest.shard_path(manifest.shards[0]).samefile(foreign / "part-0.tar")
    assert run(foreign, "--output", output, capsys=capsys)[0] == 0


BAD = {
    "has no image": sample("bad", txt=b"a caption"),
    "has no text": sample("bad", jpg=b"x", json=b"{}"),
    "has no image, has no text": sample("bad", cls=b"7"),
    "has an empty image": sample("bad", jpg=b"", txt=b"a caption"),
    "has an empty text": sample("bad", jpg=b"x", txt=b""),
    "has 2 members that are its image": sample("bad", jpg=b"x", png=b"y", txt=b"z"),
}


@pytest.mark.parametrize("told", BAD)
def test_a_bad_sample_is_named_and_can_be_left_out(tmp_path, told, capsys):
    write_tar(tmp_path / "a.tar", good("one") + BAD[told] + good("two"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and f"a.tar: bad {told}\n" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"], "nothing is made"
    code, printed = run(tmp_path, "--leave-out-bad", capsys=capsys)
    assert code == 0 and f"left out: a.tar: bad {told}\n" in printed
    assert load_manifest(tmp_path / "manifest.json").num_samples == 2


def test_members_that_are_no_samples_are_named(tmp_path, capsys):
    members = [*good("one"), ("README", b"hello"), *good("two"), (".hidden.jpg", b"x")]
    write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("three.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1
    for name in ("README", ".hidden.jpg", "three.jpg"):
        assert f"a.tar: member '{name}' is no part of a sample" in printed


def test_scattered_members_are_named(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one") + good("two") + sample("one", json=b"{}"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "a.tar: the members of one do not lie together" in printed


def test_upper_case_and_folders_and_other_members_are_taken(tmp_path, capsys):
    members = [("a/b.c/0.JPG", pictures.jpeg()), ("a/b.c/0.TXT", b"x y"), ("a/b.c/0.seg.png", b"?")]
    write_tar(tmp_path / "deep" / "a.tar", members)
    assert run(tmp_path, capsys=capsys)[0] == 0
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.shards[0].path == "deep/a.tar"
    assert pq.read_table(manifest.index_path(manifest.shards[0]))["key"].to_pylist() == ["a/b.c/0"]


@pytest.mark.parametrize("cut", [-700, -10_240, 1000, 10])
def test_a_truncated_tar_is_named(tmp_path, cut, capsys):
    write_tar(tmp_path / "b.tar", good("one"))
    whole = write_tar(tmp_path / "a.tar", [m for n in range(20) for m in good(f"{n}")])
    end = scan_end(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[: end + cut] if -10_240 < cut < 0 else content[:cut])
    code, printed = run(tmp_path, "--leave-out-bad", capsys=capsys)
    assert code == 0 and "left out: a.tar: is truncated" in printed
    assert load_manifest(tmp_path / "manifest.json").num_samples == 1


def scan_end(tar: Path) -> int:
    with tarfile.open(tar) as archive:
        archive.getmembers()
        return archive.offset


def test_a_tar_cut_between_two_members_is_truncated(tmp_path):
    tar = write_tar(tmp_path / "a.tar", good("one"))
    tar.write_bytes(tar.read_bytes()[: scan_end(tar)])
    scan = scan_tar(tar, decode=True)
    assert scan.broken and "has no end mark" in str(scan.faults[0])


def test_garbage_among_the_members_is_found(tmp_path):
    """tarfile itself stops there, without a word."""
    tar = write_tar(tmp_path / "a.tar", good("one") + good("two"))
    with tarfile.open(tar) as archive:
        place = archive.getmembers()[2].offset
    with tar.open("r+b") as file:
        file.seek(place)
        file.write(b"garbage!" * 64)
    assert [info.name for info in tarfile.open(tar)] == ["one.jpg", "one.txt"]
    scan = scan_tar(tar, decode=True)
    assert scan.broken and "is damaged: what follows byte" in str(scan.faults[0])


def test_an_image_that_does_not_decode_is_told(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one") + sample("two", jpg=b"no image", txt=b"a caption"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "a.tar: two: the image does not decode" in printed


def test_no_tars_and_compressed_tars(tmp_path, capsys):
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "has no manifest.json and no .tar below it" in printed
    (tmp_path / "a.tar.gz").write_bytes(b"")
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "a.tar.gz is compressed" in printed
    code, printed = run(tmp_path / "nowhere", capsys=capsys)
    assert code == 1 and "no manifest at" in printed

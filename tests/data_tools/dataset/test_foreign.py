"""Tars of somebody else: made with webdataset's own writer, and broken in every way."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import audit
from data_tools.dataset.manifest import (
    INDEX,
    LeftOut,
    ManifestError,
    file_sha256,
    load_manifest,
    save_manifest,
    verify_checksums,
)
from data_tools.dataset.samples import content_fault
from data_tools.dataset.tar_scan import scan_tar
from pipeline.config import DataConfig
from pipeline.data.faults import SampleError
from pipeline.data.samples.sample import RawSample, SampleDecoder
from pipeline.data.shards.dataset import open_dataset
from tests.data_tools.crawl import pictures
from tests.pipeline.data.loading import read_batches

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


UNUSABLE = {
    "the text does not decode": sample("bad", jpg=pictures.jpeg(), txt="caf\xe9".encode("latin-1")),
    "the caption is empty": sample("bad", jpg=pictures.jpeg(), txt=b" \n\t"),
    "the caption is empty\n": sample("bad", jpg=pictures.jpeg(), txt=b"&nbsp; &#32;"),
    "the image does not decode: it is an HTML or XML page": sample(
        "bad", jpg=b"<!DOCTYPE html><html>404</html>", txt=b"x"
    ),
    "the image does not decode: it is HEIC": sample(
        "bad", jpg=b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(900), txt=b"x"
    ),
    "the image does not decode: it is a pointer of Git LFS": sample(
        "bad", png=b"version https://git-lfs.github.com/spec/v1\noid sha256:1", txt=b"x"
    ),
    "the image does not decode: JPEG is cut short": sample(
        "bad", jpg=pictures.jpeg()[:-200], txt=b"x"
    ),
    "the image does not decode: JPEG ends within its header": sample(
        "bad", jpg=pictures.jpeg()[:100], txt=b"x"
    ),
    "the image does not decode: it is zeros only": sample("bad", jpg=bytes(5000), txt=b"x"),
    "the image does not decode": sample("bad", webp=b"RIFF\1\2\3\4WEBPVP8 " + bytes(99), txt=b"x"),
    "the json is no object": sample("bad", jpg=pictures.jpeg(), txt=b"x", json=b"[1]"),
    "the json does not decode": sample("bad", jpg=pictures.jpeg(), txt=b"x", json=b"{'a': 1}"),
    "the json is nested too deeply": sample(
        "bad", jpg=pictures.jpeg(), txt=b"x", json=b'{"a":' * 150_000
    ),
    "has a name that is not UTF-8": sample("b\udce9d", jpg=pictures.jpeg(), txt=b"x"),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_training_could_not_use_is_left_out_for_good(tmp_path, reason, capsys):
    """Many good samples: the few that an audit decodes are others when a bad one is gone."""
    members = [member for number in range(30) for member in good(f"a{number}")]
    write_tar(tmp_path / "a.tar", members + UNUSABLE[reason] + good("z"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and reason.strip() in printed and "--leave-out-bad makes one" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"], "nothing is made"
    code, printed = run(tmp_path, "--leave-out-bad", capsys=capsys)
    assert code == 0 and f"left out: in all 1: 1 x {reason.strip().split(': ')[0]}\n" in printed
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 0 and "left out when the manifest was made: 1: 1 x" in printed
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.num_samples == 31
    batches = read_batches(tmp_path / "manifest.json", 8, max_bad_fraction=0.0)
    assert "bad" not in {key for batch in batches for key in batch.keys}


@pytest.mark.parametrize("decode", [16, 256])
def test_the_manifest_without_bad_samples_passes_every_audit(tmp_path, decode, capsys):
    kinds = list(UNUSABLE.values())
    for number in range(3):
        members: list[Member] = []
        for place in range(40):
            bad = [(f"{place}{name}", content) for name, content in kinds[place % len(kinds)]]
            members += bad if place % 3 == number else good(f"{place}")
        write_tar(tmp_path / f"{number}.tar", members)
    code, printed = run(tmp_path, "--leave-out-bad", f"decode={decode}", capsys=capsys)
    assert code == 0 and "left out: in all 40: " in printed
    assert load_manifest(tmp_path / "manifest.json").num_samples == 80
    for again in (1, 16, 256):
        assert run(tmp_path, f"decode={again}", capsys=capsys)[0] == 0


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(40), b"GIF89a", b"\xff\xd8\xff", b"BM"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_the_audit_takes_the_loader_takes(content, data):
    """And what it refuses, the loader refuses: bytes, and pictures cut or changed anywhere."""
    picture = data.draw(st.sampled_from([pictures.jpeg(), pictures.png(), content]))
    cut = data.draw(st.integers(0, len(picture)))
    image = picture[:cut] + data.draw(st.binary(max_size=20))
    text = data.draw(st.one_of(st.binary(max_size=12), st.sampled_from([b"a", b"&nbsp;", b"\xe9"])))
    out = np.zeros((3, 16, 16), np.uint8)
    decoder = SampleDecoder(DataConfig(), image_size=16, seed=1)
    try:
        decoder.decode(RawSample("k", "s", 0, image, text, b""), 0, out)
        usable = True
    except SampleError:
        usable = False
    fault = content_fault({"image": image, "text": text}, decode=True)
    assert usable == (not fault), fault


def test_a_member_twice_is_left_out_for_good(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one") + good("two") + sample("one", jpg=b"?", txt=b"later"))
    assert run(tmp_path, "--leave-out-bad", capsys=capsys)[0] == 0
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 0 and "2 samples in 1 shards" in printed


def test_linked_folders_and_files_are_read(tmp_path, capsys):
    data = tmp_path / "data"
    write_tar(data / "own" / "1.tar", good("a"))
    write_tar(tmp_path / "elsewhere" / "deep" / "2.tar", good("b") + good("c"))
    write_tar(tmp_path / "third" / "3.tar", good("d"))
    (data / "linked").symlink_to("../elsewhere")
    (data / "file.tar").symlink_to("../third/3.tar")
    code, printed = run(data, capsys=capsys)
    assert code == 0 and "4 samples in 3 shards" in printed
    assert run(data, capsys=capsys)[0] == 0
    assert [path.name for path in (tmp_path / "elsewhere" / "deep").iterdir()] == ["2.tar"], (
        "nothing is written through a link"
    )
    paths = [shard.path for shard in load_manifest(data / "manifest.json").shards]
    assert paths == ["file.tar", "linked/deep/2.tar", "own/1.tar"]
    batches = read_batches(data / "manifest.json", 4, global_batch_size=4)
    assert {key for batch in batches for key in batch.keys} == {"a", "b", "c", "d"}


def test_links_that_loop_or_lead_nowhere_are_named(tmp_path, capsys):
    data = tmp_path / "data"
    write_tar(data / "x" / "1.tar", good("a"))
    (data / "x" / "up").symlink_to("..")
    (data / "x" / "out").symlink_to("../..")
    (data / "itself.tar").symlink_to("itself.tar")
    (data / "gone.tar").symlink_to("/nowhere/gone.tar")
    (data / "unmounted").symlink_to("/nowhere/folder")
    code, printed = run(data, capsys=capsys)
    assert code == 1 and "note: x/up is the folder . again: taken once" in printed
    assert "note: x/out is a link to a folder above: not followed" in printed
    assert "error: gone.tar is a broken link: /nowhere/gone.tar: No such file" in printed
    assert "error: unmounted is a broken link: /nowhere/folder: No such file" in printed
    assert "error: itself.tar is a broken link: itself.tar: Too many levels" in printed
    assert run(data, "--leave-out-bad", capsys=capsys)[0] == 0
    assert run(data, capsys=capsys)[0] == 0


def test_a_shard_under_two_names_is_taken_once(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one"))
    write_tar(tmp_path / "deep" / "b.tar", good("two"))
    (tmp_path / "deep" / "hard.tar").hardlink_to(tmp_path / "a.tar")
    (tmp_path / "soft.tar").symlink_to("deep/b.tar")
    (tmp_path / "copy.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    (tmp_path / "again").symlink_to("deep")
    for _ in range(2):
        code, printed = run(tmp_path, capsys=capsys)
        assert code == 0 and "2 samples in 2 shards" in printed
        if not (tmp_path / "printed").exists():
            (tmp_path / "printed").write_text(printed)
    told = (tmp_path / "printed").read_text()
    assert "soft.tar is the file deep/b.tar again: taken once" in told
    assert "copy.tar is a copy of a.tar: taken once" in told
    assert "again is the folder deep again: taken once" in told
    assert "is the file deep/hard.tar again" in told or "hard.tar is the file a.tar again" in told


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, capsys, monkeypatch):
    write_tar(tmp_path / "a.tar", good("one"))
    write_tar(tmp_path / "closed" / "b.tar", good("two"))
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/closed"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "closed cannot be looked into: Permission denied (errno 13)" in printed


def test_what_is_no_tar_by_name_or_content_is_told(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one"))
    (tmp_path / "b.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b\x08" + bytes(200))
    (tmp_path / "d.tar").write_bytes(b"<html>Sign in</html>")
    (tmp_path / "e.tar").write_bytes(b"")
    (tmp_path / "f.tar.gz").write_bytes(b"x")
    (tmp_path / "g.TAR").write_bytes(b"x")
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1
    assert "b.tar: is no tar: it is a pointer of Git LFS: run git lfs pull" in printed
    assert "c.tar: is no tar: it is compressed by gzip" in printed
    assert "d.tar: is no tar: it is an HTML or XML page" in printed
    assert "e.tar: is no tar: it is empty" in printed
    assert "note: f.tar.gz is compressed" in printed
    assert "note: g.TAR is not read: its name does not end in .tar" in printed
    assert run(tmp_path, "--leave-out-bad", capsys=capsys)[0] == 0
    assert run(tmp_path, capsys=capsys)[0] == 0


def test_ignored_members_are_counted(tmp_path, capsys):
    members = [m for key in ("7", "8") for m in good(key) + sample(key, cls=b"1")]
    write_tar(tmp_path / "a.tar", sample("7.25", jpg=b"x", txt=b"y") + members)
    for _ in range(2):
        code, printed = run(tmp_path, capsys=capsys)
        assert code == 0 and "2 samples" in printed
        assert "note: a.tar: 4 members ignored: cls (2), 25.jpg, 25.txt; a key ends" in printed


def test_dots_in_all_keys_are_explained(tmp_path, capsys):
    members = [m for n in range(3) for m in good(f"photo.{n}")]
    write_tar(tmp_path / "a.tar", members)
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "photo has no image, has no text: it has 0.jpg, 0.txt, 1.jpg" in printed
    assert "a key ends at its first dot" in printed and "--leave-out-bad" not in printed


def test_links_and_sparse_members_are_named_as_what_they_are(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", good("one"))
    with tarfile.open(tar, "a") as archive:
        for name, kind, target in (
            ("two.jpg", tarfile.LNKTYPE, "one.jpg"),
            ("three.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("four.jpg", tarfile.FIFOTYPE, ""),
            ("._five.jpg", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("six.jpg")  # as `tar --sparse --format=pax` writes a file with holes
        info.pax_headers = {"GNU.sparse.map": "0,3,300000,3", "GNU.sparse.size": "300003"}
        info.size = 6
        archive.addfile(info, io.BytesIO(b"begend"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1
    for name, told in (
        ("two.jpg", "a hard link to one.jpg"),
        ("three.jpg", "a symbolic link"),
        ("four.jpg", "a named pipe"),
        ("._five.jpg", "an AppleDouble file"),
        ("six.jpg", "a sparse file"),
    ):
        assert f"a.tar: member '{name}' is no part of a sample: {told}" in printed


def test_concatenated_tars_are_named(tmp_path, capsys):
    first = write_tar(tmp_path / "a.tar", good("one")).read_bytes()
    second = write_tar(tmp_path / "a.tar", good("two")).read_bytes()
    (tmp_path / "a.tar").write_bytes(first + second)
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1
    assert f"a.tar: is concatenated: a second tar begins at byte {len(first)}" in printed


def advised(printed: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Do what the last line that was printed advises, word by word."""
    found = re.search(r"delete (.*) and make it anew: python -m data_tools.audit (.*)", printed)
    assert found is not None, printed
    Path(*shlex.split(found[1])).unlink()
    return run(*shlex.split(found[2]), capsys=capsys)


@pytest.mark.parametrize("place", ["beside", "output", "manifest"])
@pytest.mark.parametrize("change", ["grown", "replaced", "same size", "shrunk"])
def test_the_advice_about_a_changed_folder_works(tmp_path, place, change, capsys):
    data = tmp_path / "a folder"
    for number in range(2):
        write_tar(data / "in" / f"{number}.tar", good(f"{number}a") + good(f"{number}b"))
    output = [] if place == "beside" else ["output", tmp_path / "out put"]
    arguments = [data, *(["--output", output[1]] if output else [])]
    assert run(*arguments, capsys=capsys)[0] == 0
    if change == "grown":
        write_tar(data / "in" / "2.tar", good("new"))
    elif change == "replaced":
        write_tar(data / "in" / "1.tar", [m for n in range(9) for m in good(f"{n}")])
    elif change == "same size":
        write_tar(data / "in" / "1.tar", good("1c") + good("1d"))
    else:
        (data / "in" / "1.tar").unlink()
    target = [output[1] / "manifest.json"] if place == "manifest" else arguments
    code, printed = run(*target, capsys=capsys)
    assert code == 1 and {"grown": "2.tar is not in the manifest"}.get(change, "1.tar") in printed
    code, printed = advised(printed, capsys)
    assert code == 0
    assert run(*target, capsys=capsys)[0] == 0
    total = {"grown": "5 samples", "replaced": "11 samples", "same size": "4 samples"}
    assert total.get(change, "2 samples") in printed


def test_the_advice_leaves_out_what_was_left_out(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one") + sample("bad", txt=b"x"))
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    assert run(tmp_path, "--leave-out-bad", capsys=capsys)[0] == 0
    assert run(tmp_path, capsys=capsys)[0] == 0, "b.tar is known"
    write_tar(tmp_path / "b.tar", good("two"))
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "b.tar is not in the manifest: it has changed since" in printed
    assert advised(printed, capsys)[0] == 0
    assert load_manifest(tmp_path / "manifest.json").num_samples == 2


def test_a_manifest_made_before_with_bad_samples_is_made_anew_by_the_advice(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", good("one") + good("two"))
    assert run(tmp_path, capsys=capsys)[0] == 0
    with tarfile.open(tar) as archive:
        place = archive.getmember("two.txt").offset_data
    with tar.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff")
    manifest = load_manifest(tmp_path / "manifest.json")
    entry = manifest.shards[0]._replace(sha256=file_sha256(tar))
    save_manifest(replace(manifest, shards=(entry,)), tmp_path / "manifest.json")
    code, printed = run(tmp_path, capsys=capsys)
    assert code == 1 and "two: the text does not decode" in printed
    assert advised(printed, capsys)[0] == 0


def test_a_loader_gives_the_advice_too(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", good("one"))
    assert run(tmp_path, capsys=capsys)[0] == 0
    write_tar(tmp_path / "a.tar", [m for n in range(9) for m in good(f"{n}")])
    with pytest.raises(ManifestError, match="a.tar has .* bytes") as caught:
        open_dataset(str(tmp_path / "manifest.json"))
    assert advised(str(caught.value), capsys)[0] == 0


def test_names_of_strangers_do_not_reach_the_terminal(tmp_path, capsys):
    odd = "\x1b]0;title\x07\x1b[2J\u202egnp"
    members = good("one") + sample(odd, jpg=b"x") + [(f"{odd}/README", b"")]
    write_tar(tmp_path / "a.tar", members + good("two"))
    for arguments in ([], ["--leave-out-bad"], []):
        _, printed = run(tmp_path, *arguments, capsys=capsys)
        assert printed.replace("\n", "").replace("\r", "").isprintable()
    assert "2 samples" in printed


def test_a_name_of_gigabytes_is_not_read_into_memory(tmp_path, capsys):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 700_000_000
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(700_002_048)
    write_tar(tmp_path / "b.tar", good("one"))
    tracemalloc.start()
    try:
        code, printed = run(tmp_path, "--leave-out-bad", capsys=capsys)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert code == 0 and "a.tar: is truncated or no tar: the header at byte 0 has a name" in printed


def test_a_tar_or_a_file_in_place_of_the_folder(tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", good("one"))
    code, printed = run(tar, capsys=capsys)
    assert code == 1 and "a.tar is a tar: give the folder that holds it" in printed
    (tmp_path / "page.json").write_text("<html>")
    code, printed = run(tmp_path / "page.json", capsys=capsys)
    assert code == 1 and "it is an HTML or XML page" in printed


def test_a_manifest_without_the_new_part_is_read(tmp_path, capsys):
    """As manifests were written before anything was left out of them by name."""
    write_tar(tmp_path / "a.tar", good("one"))
    assert run(tmp_path, capsys=capsys)[0] == 0
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert "left_out" not in content
    assert load_manifest(tmp_path / "manifest.json").left_out == LeftOut()

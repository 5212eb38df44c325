"""Verification against what img2dataset is known to leave behind, on copies of a real part."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.crawl import child_processes
from data_tools.crawl.child_processes import GuardProcess, run_img2dataset
from data_tools.crawl.guard import GuardFate
from data_tools.crawl.verify import PartResult, PartUrls, read_guard_fates, verify_part
from data_tools.tables.schema import FATES, FETCHED, DataError, read_table
from tests.data_tools.crawl.jobs import settings

pytestmark = pytest.mark.slow  # img2dataset runs first


@pytest.fixture
def part(crawled, tmp_path) -> Path:
    copy = shutil.copytree(crawled.paths.crawl / "part-00000", tmp_path / "part-00000")
    shutil.copy(crawled.paths.crawl / "plan.parquet", copy)
    return Path(copy)


def verify(part: Path, num_shards: int = 1) -> PartResult:
    rows = pq.ParquetFile(part / "plan.parquet").read_row_group(0)
    images, fates, log = part / "images", part / "guard.jsonl", part / "img2dataset.log"
    urls = PartUrls.from_rows(rows, blur=False)
    return verify_part(images, urls, num_shards, fates, log, "part-00000/images")


def test_an_untouched_part_is_what_the_driver_recorded(part):
    result = verify(part)
    assert result.fetched.equals(read_table(part / "fetched.parquet", FETCHED))
    assert result.fates.equals(read_table(part / "fates.parquet", FATES))
    with tarfile.open(part / "images" / "00000.tar") as archive:
        images = {m.offset_data: m.size for m in archive if m.name.endswith(".jpg")}
    recorded = result.fetched.select(["offset", "size"]).to_pydict()
    assert dict(zip(recorded["offset"], recorded["size"], strict=True)) == images


@pytest.mark.parametrize("place", [0, 10, -1])
def test_a_tar_truncated_in_an_image_is_named(part, place):
    tar = part / "images" / "00000.tar"
    with tarfile.open(tar) as archive:
        image = [member for member in archive if member.name.endswith(".jpg")][place]
    tar.write_bytes(tar.read_bytes()[: image.offset_data + image.size // 2])
    with pytest.raises(DataError, match="00000.tar (is truncated|holds)"):
        verify(part)


def test_a_tar_cut_between_two_members_is_named(part):
    """tarfile takes the missing end for an end; only the count tells."""
    tar = part / "images" / "00000.tar"
    with tarfile.open(tar) as archive:
        middle = [member.offset for member in archive if member.name.endswith(".jpg")][10]
    tar.write_bytes(tar.read_bytes()[:middle])
    with pytest.raises(DataError, match=r"00000.tar (is truncated|holds \d+ images, its table)"):
        verify(part)


def test_no_tar_at_all(part):
    (part / "images" / "00000.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(DataError, match="00000.tar is truncated or no tar"):
        verify(part)


def test_a_shard_that_img2dataset_gave_up_is_named(part):
    with pytest.raises(DataError, match="did not finish .*00001.tar"):
        verify(part, num_shards=2)


def test_stats_that_disagree_are_named(part):
    file = part / "images" / "00000_stats.json"
    stats = json.loads(file.read_text())
    file.write_text(json.dumps({**stats, "successes": stats["successes"] + 1}))
    with pytest.raises(DataError, match=r"00000.tar: (\d+) images by its stats, \d+ by its"):
        verify(part)


def test_an_image_that_does_not_decode_is_named(part):
    row = verify(part).fetched.to_pylist()[3]
    with (part / "images" / "00000.tar").open("r+b") as file:
        file.seek(row["offset"])
        file.write(b"\0" * row["size"])
    with pytest.raises(DataError, match=r"00000.tar: the image \d+.jpg does not decode"):
        verify(part)


def test_an_image_the_guard_did_not_deliver_is_refused(part):
    """As when something else answered on the guard's port."""
    fates = part / "guard.jsonl"
    lines = fates.read_text().splitlines(keepends=True)
    told = [line.replace('"fetched"', '"failed:timeout"') for line in lines]
    fates.write_text("".join(told))
    with pytest.raises(DataError, match="which the guard did not deliver"):
        verify(part)


def test_the_last_fate_of_a_row_counts(part):
    fetched = next(n for n, f in read_guard_fates(part / "guard.jsonl").items() if f.sha256)
    with (part / "guard.jsonl").open("a") as file:
        file.write(json.dumps(GuardFate(fetched, "failed:timeout").__dict__) + "\n")
    with pytest.raises(DataError, match="did not deliver"):
        verify(part)


def test_a_failing_img2dataset_is_an_error_with_its_log(tmp_path):
    arguments, log = tmp_path / "arguments.json", tmp_path / "log"
    arguments.write_text(json.dumps({"url_list": str(tmp_path / "absent.parquet")}))
    with GuardProcess(settings()) as guard:
        with pytest.raises(DataError, match=r"ended with code 1(?s:.*)FileNotFoundError"):
            run_img2dataset(arguments, log, guard=guard, pulse=list, stall_timeout_s=60)


def test_a_stall_ends_the_run(tmp_path, monkeypatch):
    """A pulse that stands still, whatever the reason, is the end of it."""
    monkeypatch.setattr(child_processes, "START_UP_S", 0.0)
    arguments, log = tmp_path / "arguments.json", tmp_path / "log"
    arguments.write_text(json.dumps({"url_list": str(tmp_path / "absent.parquet")}))
    with GuardProcess(settings()) as guard:
        with pytest.raises(DataError, match="finished nothing for 0 s"):
            run_img2dataset(arguments, log, guard=guard, pulse=list, stall_timeout_s=0)


def test_schemas_are_those_of_the_contract(part):
    result = verify(part)
    assert result.fetched.schema == FETCHED and result.fates.schema == FATES
    assert result.fetched["uid"].type == pa.string()

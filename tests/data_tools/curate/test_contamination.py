from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_tools import audit, curate
from data_tools.curate.contamination import CONTAMINATION
from data_tools.tables.schema import DataError, DatasetPaths
from tests.data_tools.curate.crawled import (
    Pair,
    crawl,
    curated_of,
    fates_of,
    job_of,
    jpeg,
    photo,
    resized,
)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def crawled(tmp_path) -> tuple[DatasetPaths, list[str]]:
    """12 pictures; of number 3 two pairs."""
    pairs = [Pair(jpeg(photo(n)), f"caption {n} of many") for n in range(12)]
    pairs.append(Pair(jpeg(photo(3)), "number 3 again"))
    return crawl(tmp_path / "data", pairs)


def as_folder(target: Path) -> str:
    (target / "deep").mkdir(parents=True)
    for n in (3, 5):
        (target / "deep" / f"{n}.png").write_bytes(png(photo(n, 100)))
    (target / "readme.txt").write_text("no image")
    return str(target)


def as_tars(target: Path) -> str:
    """CLIP_benchmark's layout."""
    (target / "test").mkdir(parents=True)
    for n in (3, 5):
        with tarfile.open(target / "test" / f"{n}.tar", "w") as archive:
            for name, content in ((f"{n}.jpg", jpeg(photo(n, 200), 70)), (f"{n}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(target)


def as_manifest(target: Path) -> str:
    as_tars(target)
    for tar in (target / "test").iterdir():
        with tarfile.open(tar, "a") as archive:
            info = tarfile.TarInfo(f"{tar.stem}.txt")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"text"))
    assert audit.main([str(target), "--processes", "1"]) == 0
    return str(target / "manifest.json")


@pytest.mark.parametrize("make", [as_folder, as_tars, as_manifest])
def test_images_near_evaluation_images_are_dropped_and_listed(crawled, tmp_path, make):
    paths, uids = crawled
    counts = curate.run(job_of(paths, evaluation_sets=[make(tmp_path / "eval")]), paths)
    assert counts == {"fetched": 13, "contamination": 3, "curated": 10}
    assert not {uids[3], uids[5], uids[12]} & curated_of(paths).keys()
    table = pq.read_table(paths.table("contamination"))
    assert table.schema.equals(CONTAMINATION)
    found = {row["uid"]: row for row in table.to_pylist()}
    assert found.keys() == {uids[3], uids[5], uids[12]}
    for uid, row in found.items():
        assert row["distance"] <= 4
        name = row["evaluation_image"]
        assert name.startswith(str(tmp_path / "eval"))
        assert Path(name.split("::")[-1]).stem == ("5" if uid == uids[5] else "3")
        detail = f"{row['distance']} bits from {name}"
        assert fates_of(paths)[uid] == ("rejected:contamination", detail)
    clean = curate.run(job_of(paths), paths)
    assert clean == {"fetched": 13, "duplicate": 1, "curated": 12}, "the rule is off again"
    assert not paths.table("contamination").exists(), "of an earlier run"


def test_the_copy_that_is_near_goes_though_it_is_not_the_best(tmp_path):
    """Contamination is asked before duplicates: else the larger copy, which is not near enough to
    the evaluation image, could keep its smaller one's place, or the reverse lose both."""
    picture = photo(3)
    pairs = [
        Pair(jpeg(picture), "short text"),
        Pair(jpeg(picture, 80), "a longer text of it"),
        Pair(jpeg(photo(4)), "another one"),
    ]
    paths, uids = crawl(tmp_path / "data", pairs)
    sets = [as_folder(tmp_path / "eval")]
    assert curate.run(job_of(paths, evaluation_sets=sets), paths)["contamination"] == 2
    assert curated_of(paths).keys() == {uids[2]}


def test_more_bits_find_worse_copies(crawled, tmp_path):
    paths, _ = crawled
    folder = tmp_path / "eval"
    folder.mkdir()
    worst = resized(photo(7), 24)
    (folder / "7.jpg").write_bytes(jpeg(worst, 10))
    counts = [
        curate.run(
            job_of(paths, evaluation_sets=[str(folder)], max_contamination_bits=bits), paths
        ).get("contamination", 0)
        for bits in (0, 8)
    ]
    assert counts[0] <= counts[1] <= 1


def test_sets_that_are_no_sets_are_named(crawled, tmp_path):
    paths, _ = crawled
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="empty, in which there is no image"):
        curate.run(job_of(paths, evaluation_sets=[str(empty)]), paths)
    (empty / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="bad.jpg: an image of an evaluation set that does not"):
        curate.run(job_of(paths, evaluation_sets=[str(empty)]), paths)
    shutil.rmtree(empty)
    empty.mkdir()
    (empty / "cut.tar").write_bytes(b"x" * 700)
    with pytest.raises(DataError, match="cut.tar: a tar of an evaluation set, not readable"):
        curate.run(job_of(paths, evaluation_sets=[str(empty)]), paths)
    (empty / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="evaluation_sets: .*is not a manifest"):
        curate.run(job_of(paths, evaluation_sets=[str(empty / "manifest.json")]), paths)
    assert not paths.table("curated").exists()

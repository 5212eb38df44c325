"""The cut of kept pairs into parts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.config.crawl import FaceBoxesConfig
from data_tools.crawl import part_plan as plan_module
from data_tools.crawl.kept_rows import sorted_rows, source_of
from data_tools.crawl.part_plan import ROWS, Plan, cut, make_plan
from data_tools.tables.schema import DataError, DatasetPaths
from tests.benchmarks.peak_memory import peak_extra_bytes
from tests.data_tools.crawl.jobs import write_kept
from tests.data_tools.odd_folders import ODD_NAMES

NO_FACES = FaceBoxesConfig()


def plan_of(out_dir: Path, samples_per_part: int, boxes: FaceBoxesConfig = NO_FACES) -> Plan:
    paths = DatasetPaths(out_dir)
    kept, folder = paths.table("kept"), paths.crawl
    source = source_of(kept, boxes)
    return make_plan(folder, source, samples_per_part, lambda: sorted_rows(kept, boxes, folder))


def parts_of(plan: Plan) -> list[pa.Table]:
    return [plan.read(index) for index in range(len(plan.parts))]


@given(
    st.lists(st.lists(st.integers(0, 8), max_size=12), max_size=6),
    st.integers(1, 4),
)
def test_cuts_are_where_the_urls_are_counted(sizes, urls_per_part):
    """Whatever the tables' borders: parts of so many URLs, each URL in one, nothing lost."""
    urls = [f"u{number}" for number, count in enumerate(sum(sizes, [])) for _ in range(count)]
    borders, place = [], 0
    for size in sizes:
        borders.append((place, place + len(size)))
        place += len(size)
    borders.append((place, len(urls)))
    rows = pa.table({"uid": [f"{n}" for n in range(len(urls))], "url": urls})
    rows = rows.append_column("face_boxes", pa.nulls(len(urls), ROWS.field("face_boxes").type))
    rows = rows.cast(ROWS)
    tables = [rows.slice(start, stop - start) for start, stop in borders]
    parts = list(cut(tables, urls_per_part))
    assert [uid for part in parts for uid in part["uid"].to_pylist()] == rows["uid"].to_pylist()
    counts = [len(set(part["url"].to_pylist())) for part in parts]
    assert all(count == urls_per_part for count in counts[:-1])
    assert sum(counts) == len(set(urls)) and all(0 < count <= urls_per_part for count in counts)


def test_all_captions_of_a_url_are_in_one_part_in_whatever_spelling(tmp_path):
    urls = [f"http://a.example/{number}.jpg" for number in range(40)]
    write_kept(tmp_path, [*urls, "HTTP://A.example:80/7.jpg#x", urls[7], "http://b.example/\u00e9"])
    parts = parts_of(plan_of(tmp_path, samples_per_part=10))
    assert [len(set(part["url"].to_pylist())) for part in parts] == [10, 10, 10, 10, 1]
    sevens = [part["url"].to_pylist().count("http://a.example/7.jpg") for part in parts]
    assert sorted(sevens) == [0, 0, 0, 0, 3]
    assert "http://b.example/%C3%A9" in sum((part["url"].to_pylist() for part in parts), [])


def test_neighbours_are_of_different_sites(tmp_path):
    write_kept(tmp_path, [f"http://site{n // 100}.example/{n}.jpg" for n in range(1000)])
    (part,) = parts_of(plan_of(tmp_path, samples_per_part=1000))
    sites = [url.split("/")[2] for url in part["url"].to_pylist()]
    assert sum(one == other for one, other in zip(sites[:-1], sites[1:], strict=True)) < 200


def test_the_plan_is_that_of_the_rows_and_not_of_their_order(tmp_path):
    urls = [f"http://a.example/{number % 30}.jpg" for number in range(60)]
    captions = [f"caption {number}" for number in range(60)]
    write_kept(tmp_path / "1", urls, captions)
    write_kept(tmp_path / "2", urls[::-1], captions[::-1])
    assert plan_of(tmp_path / "1", 7).parts == plan_of(tmp_path / "2", 7).parts


def test_a_plan_is_made_once_and_anew_for_other_rows(tmp_path):
    write_kept(tmp_path, ["http://a.example/1.jpg", "http://a.example/2.jpg"])
    first = plan_of(tmp_path, 10)
    before = os.stat(first.file).st_mtime_ns
    assert plan_of(tmp_path, 10) == first and os.stat(first.file).st_mtime_ns == before
    write_kept(tmp_path, ["http://a.example/1.jpg"])
    assert plan_of(tmp_path, 10).parts[0].rows == 1
    (tmp_path / "crawl" / "plan.json").write_text("{")
    assert plan_of(tmp_path, 10).parts[0].rows == 1


def test_tasks_that_come_at_once_make_one_plan(tmp_path):
    write_kept(tmp_path, [f"http://a.example/{number}.jpg" for number in range(200)])
    with ThreadPoolExecutor(4) as tasks:
        plans = list(tasks.map(lambda _: plan_of(tmp_path, 10), range(4)))
    assert all(plan == plans[0] for plan in plans) and len(plans[0].parts) == 20
    names = {path.name for path in (tmp_path / "crawl").iterdir()}
    assert names == {"plan.parquet", "plan.json", ".plan.lock"}


def test_nobody_waits_for_ever_for_anothers_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "WAIT_FOR_PLAN_S", 0.0)
    with plan_module._alone(tmp_path / "lock"):
        with pytest.raises(DataError, match="end it, and run again"):
            with plan_module._alone(tmp_path / "lock"):
                pass


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """400 million rows are cut on one machine: 8 times the rows, 170 MB more of them, sorted on
    disk."""
    monkeypatch.setattr("data_tools.tables.scratch.MEMORY_LIMIT", "100MB")
    peaks = []
    for count in (200_000, 1_600_000):
        folder = tmp_path / str(count)
        write_many(folder, count)
        peaks.append(peak_extra_bytes(partial(plan_of, folder, 10_000)))
    assert peaks[1] < peaks[0] + 100e6, peaks


def write_many(out_dir: Path, count: int) -> None:
    path = DatasetPaths(out_dir).table("kept")
    path.parent.mkdir(parents=True)
    numbers = range(count)
    table = {
        "uid": [f"{number:032x}" for number in numbers],
        "url": [f"https://site{n % 1000}.example/{n // 2}/a-rather-long-name.jpg" for n in numbers],
    }
    pq.write_table(pa.table(table), path)


def write_boxes(file: Path, boxes: dict[str, list | None]) -> None:
    columns = {"url": list(boxes), "face_bboxes": list(boxes.values())}
    pq.write_table(pa.table(columns), file)


def test_boxes_are_joined_by_url(tmp_path):
    write_kept(tmp_path, [f"http://a.example/{n}.jpg" for n in (1, 2, 3, 4, 1)])
    face, other = [0.1, 0.2, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]
    write_boxes(
        tmp_path / "1.parquet",
        {"HTTP://a.example/1.jpg": [face], "http://a.example/2.jpg": []},
    )
    write_boxes(
        tmp_path / "2.parquet",
        {"http://a.example/1.jpg": [other], "http://a.example/4.jpg": None},
    )
    boxes = FaceBoxesConfig(paths=[str(tmp_path / "?.parquet")])
    (rows,) = parts_of(plan_of(tmp_path, 10, boxes))
    found = {row["url"][-5:]: row["face_boxes"] for row in rows.to_pylist()}
    assert rows.num_rows == 5
    assert found["2.jpg"] == [] and found["3.jpg"] is None and found["4.jpg"] is None
    assert sorted(found["1.jpg"]) == [pytest.approx(face), pytest.approx(other)]
    assert plan_of(tmp_path, 10).parts[0].digest != plan_of(tmp_path, 10, boxes).parts[0].digest


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(tmp_path, name):
    found = []
    for folder in (tmp_path / "plain", tmp_path / name):
        write_kept(folder, [f"http://a.example/{n}.jpg" for n in range(30)])
        file = folder / "boxes.parquet"
        write_boxes(file, {f"http://a.example/{n}.jpg": [[0.1, 0.2, 0.3, 0.4]] for n in range(9)})
        found.append(plan_of(folder, 10, FaceBoxesConfig(paths=[str(file)])).parts)
        assert not list((folder / "crawl").glob(".sort*")), "the scratch is gone"
    assert found[0] == found[1] and len(found[0]) == 3


def test_faces_of_several_tables_come_in_one_order(tmp_path):
    """The digest of a part covers it: with another order the part would be refused."""
    write_kept(tmp_path, ["http://a.example/1.jpg"])
    paths = [tmp_path / f"{number}.parquet" for number in range(8)]
    for number, path in enumerate(paths):
        write_boxes(path, {"http://a.example/1.jpg": [[0.0, 0.0, 0.5, number / 8]]})
    boxes = FaceBoxesConfig(paths=[str(path) for path in paths])
    (rows,) = parts_of(plan_of(tmp_path, 10, boxes))
    assert [face[3] for face in rows["face_boxes"][0].as_py()] == [n / 8 for n in range(8)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"url": ["a"], "face_bboxes": [[[0.1, 0.2, 30.0, 1.0]]]}, "is no box"),
        ({"url": ["a"], "face_bboxes": [[[0.1, 0.2]]]}, "is no box"),
        ({"address": ["a"], "face_bboxes": [[]]}, r"lacks the column\(s\) \['url'\]"),
    ],
)
def test_tables_of_boxes_that_are_none(tmp_path, table, said):
    write_kept(tmp_path, ["http://a.example/1.jpg"])
    pq.write_table(pa.table(table), tmp_path / "boxes.parquet")
    with pytest.raises(DataError, match=said):
        plan_of(tmp_path, 10, FaceBoxesConfig(paths=[str(tmp_path / "boxes.parquet")]))
    with pytest.raises(DataError, match="names no file"):
        plan_of(tmp_path, 10, FaceBoxesConfig(paths=[str(tmp_path / "absent-*.parquet")]))


def test_kept_without_its_columns(tmp_path):
    path = DatasetPaths(tmp_path).table("kept")
    with pytest.raises(DataError, match="kept.parquet does not exist"):
        plan_of(tmp_path, 10)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"uid": ["a"]}), path)
    with pytest.raises(DataError, match=r"lacks the column\(s\) \['url'\]"):
        plan_of(tmp_path, 10)

"""Answers on disk, whatever cut the file off."""

import tracemalloc

import pytest

from data_tools.search import stage
from data_tools.search.base import Candidate
from data_tools.search.cursor import Cursor
from data_tools.tables.schema import DataError
from tests.data_tools.local_web import job_for
from tests.data_tools.search.test_stage import cursor_file, search_on, searched


class Named:
    """What a cursor asks of a source."""

    name, address, concurrency = "named", "http://127.0.0.1:9/", 1

    def __init__(self, **settings):
        self.settings = settings


def some(number, caption="x"):
    return [Candidate(url=f"http://x.org/{n}", caption=f"{caption} {n}") for n in range(number)]


def test_a_cursor_gives_back_what_was_put_there(tmp_path):
    odd = [Candidate(url="http://x.org/a", caption='\u2028 "q" \\ \U0001f431 ]}\n', width=3)]
    with Cursor(tmp_path, Named(), 9) as cursor:
        cursor.add("one", some(3))
        cursor.add('"two"\n\u2028', odd)
        cursor.add("none", [])
    with Cursor(tmp_path, Named(), 9) as cursor:
        assert len(cursor) == 3 and "one" in cursor and "three" not in cursor
        assert cursor.read("one") == some(3)
        assert cursor.read('"two"\n\u2028') == odd
        assert cursor.read("none") == []
        cursor.add("later", some(1))
        assert cursor.read("later") == some(1)


def test_other_settings_are_another_cursor(tmp_path):
    with Cursor(tmp_path, Named(a=1), 9) as cursor:
        cursor.add("one", [])
    for source, limit in ((Named(a=2), 9), (Named(a=1), 8)):
        with Cursor(tmp_path, source, limit) as cursor:
            assert "one" not in cursor


def test_every_cut_of_a_cursor_leaves_whole_answers(tmp_path):
    with Cursor(tmp_path, Named(), 9) as cursor:
        for number in range(4):
            cursor.add(f"query {number}", some(number))
    content = cursor.path.read_bytes()
    for length in range(0, len(content) + 1, 7):
        cursor.path.write_bytes(content[:length])
        with Cursor(tmp_path, Named(), 9) as cut:
            assert len(cut) == content[:length].count(b"\n")
            cut.add("new", some(2))
            assert cut.read("new") == some(2)
        with Cursor(tmp_path, Named(), 9) as again:
            assert len(again) == content[:length].count(b"\n") + 1
            for number in range(len(again) - 1):
                assert again.read(f"query {number}") == some(number)


def test_a_damaged_line_is_named(tmp_path):
    with Cursor(tmp_path, Named(), 9) as cursor:
        cursor.add("one", some(1))
        cursor.add("two", some(1))
    content = cursor.path.read_bytes().replace(b'"url": "http', b'"url": http', 1)
    cursor.path.write_bytes(content)
    with Cursor(tmp_path, Named(), 9) as cursor:
        with pytest.raises(DataError, match="line at byte 0 .'one'. is damaged: delete that line"):
            cursor.read("one")
        assert cursor.read("two") == some(1)


def answered_job(folder, names):
    """A job and its paths, with 100 answers to each query in the cursor file."""
    job, paths = job_for(folder, "http://127.0.0.1:9/", names)
    (source,) = stage.search_sources(job.sources, paths)
    with Cursor(paths.search_cursor, source, job.search.limit_per_query) as cursor:
        for name in names:
            cursor.add(name, some(100, "a caption of some length " * 4))
    return job, paths


def test_answers_stay_on_disk(tmp_path, monkeypatch):
    """Writing the table takes a batch of memory, not all that was found."""
    monkeypatch.setattr(stage, "ROWS_PER_BATCH", 200)
    names = [f"query {number}" for number in range(300)]
    # what the first use of a library imports (20 MB) is not what is measured
    search_on(*answered_job(tmp_path / "first", names[:1]))
    job, paths = answered_job(tmp_path / "measured", names)
    assert cursor_file(paths).stat().st_size > 7_000_000
    tracemalloc.start()
    try:
        assert search_on(job, paths)["answers"] == 30_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000
    assert searched(paths)["query_ids"].to_pylist() == [[n] for n in range(300) for _ in range(100)]

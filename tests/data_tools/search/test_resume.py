"""kill -9 in the middle of a search, and what is on disk."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter

import pytest

from data_tools.config import CommonsConfig, FlickrConfig, OpenverseConfig
from data_tools.demo.server import ApiFaults
from data_tools.search import stage
from data_tools.search.base import Candidate
from data_tools.search.cursor import Cursor
from data_tools.search.pages import MAX_AGE_S, PageStore, page_key
from data_tools.tables.schema import DataError
from tests.data_tools.local_web import CONTACT, animals, job_for
from tests.data_tools.search.doubles.flickr import Flickr
from tests.data_tools.search.doubles.openverse import Openverse
from tests.data_tools.search.doubles.server import serve
from tests.data_tools.search.test_stage import (
    QUERIES,
    cursor_file,
    search_on,
    searched,
    with_licence,
)

SEARCH_ALONE = """
import sys
from pathlib import Path
from data_tools.search import stage
from data_tools.config import load_job
from data_tools.tables.schema import DatasetPaths
job = load_job(sys.argv[1:])
stage.run(job, DatasetPaths(Path(job.out_dir)))
"""
GENEROUS = {"anon_burst": "5000/min", "anon_sustained": "90000/day"}


def settings_of(name, server):
    """(settings of the one enabled server, the log of what it was asked)."""
    fast = {"enabled": True, "requests_per_second": 1000.0}
    asked = {"permission": "granted by the tests", **fast}
    if name == "commons":
        config = CommonsConfig(endpoint=server.endpoint, page_size=10, **fast)
        return config, server.api_requests
    if name == "openverse":
        config = OpenverseConfig(endpoint=server.openverse.endpoint, **asked)
        return config, server.openverse.requests
    return FlickrConfig(endpoint=server.flickr.endpoint, **asked), server.flickr.requests


def overrides_of(name, config):
    values = dataclasses.asdict(config).items()
    return [f"sources.{name}.{field}={value!r}" for field, value in values if value]


@pytest.mark.parametrize(
    "name",
    [
        "commons",
        pytest.param("openverse", marks=pytest.mark.slow),
        pytest.param("flickr", marks=pytest.mark.slow),
    ],
)
def test_kill_9_then_resume_gives_the_same_table_and_asks_nothing_twice(
    tmp_path, name, monkeypatch
):
    monkeypatch.setenv("FLICKR_API_KEY", "demo-flickr-key")
    many = ["cat", *(f"cat {number:02d}" for number in range(40)), *QUERIES[1:]]
    pictures = with_licence(animals(40))
    openverse = Openverse(pictures, throttles=GENEROUS)
    flickr = Flickr(pictures)
    with serve(
        pictures, faults=ApiFaults(latency_s=0.03), openverse=openverse, flickr=flickr
    ) as server:
        config, log = settings_of(name, server)
        jobs = {}
        for folder in ("killed", "whole"):
            job, paths = job_for(tmp_path / folder, server.endpoint, many)
            job.sources.commons.enabled = False
            setattr(job.sources, name, config)
            jobs[folder] = job, paths
        job, whole = jobs["whole"]
        search_on(job, whole)
        log.clear()

        job, paths = jobs["killed"]
        job.search.max_failed_queries = len(many)
        monkeypatch.setattr(stage, "ask", lambda *values: None)
        search_on(job, paths)  # writes the table of queries
        monkeypatch.undo()
        command = [
            *(sys.executable, "-c", SEARCH_ALONE, f"out_dir={paths.root}"),
            *(f"queries.path={job.queries.path}", f"sources.contact='{CONTACT}'"),
            *overrides_of(name, config),
        ]
        environment = {**os.environ, "FLICKR_API_KEY": "demo-flickr-key"}
        process = subprocess.Popen(command, env=environment)
        try:
            deadline = time.monotonic() + 60
            while len(log) < 15 and time.monotonic() < deadline:
                time.sleep(0.005)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
        lines = cursor_file(paths).read_text().split("\n")[:-1]
        finished = [json.loads(line)["query"] for line in lines]
        assert 0 < len(finished) < len(many)
        subprocess.run(command, check=True, timeout=120, env=environment)
        # what was asked twice is what was on its way when the kill came
        times = Counter(frozenset(request.items()) for request in log)
        assert sum(times.values()) - len(times) <= 3
        assert searched(paths).equals(searched(whole))
        assert searched(paths).num_rows > 100


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
    monkeypatch.setattr(stage, "ROWS_A_BATCH", 200)
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


def test_pages_are_kept_until_they_are_old(tmp_path, monkeypatch):
    path = tmp_path / "x.pages"
    store = PageStore(path)
    key = page_key("http://x", {"q": "cat", "page": "1"})
    assert key == page_key("http://x", {"page": "1", "q": "cat"})
    assert key != page_key("http://x", {"q": "cat", "page": "2"})
    assert store.get(key) is None
    store.put(key, {"results": [1]})
    assert store.get(key) == PageStore(path).get(key) == {"results": [1]}
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    again = PageStore(path)
    again.put("other", [2])
    for store in (again, PageStore(path)):
        assert (store.get(key), store.get("other")) == ({"results": [1]}, [2])
    later = time.time() + MAX_AGE_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert PageStore(path).get(key) is None


def test_the_store_of_pages_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.search.pages.MAX_BYTES", 5000)
    store = PageStore(tmp_path / "x.pages")
    for number in range(200):
        store.put(str(number), "x" * 100)
        assert store.get(str(number)) == "x" * 100
        assert number < 30 or store.get(str(number - 20)) == "x" * 100
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    assert store.get("0") is None and PageStore(tmp_path / "x.pages").get("0") is None
    assert PageStore(tmp_path / "x.pages").get("199") == "x" * 100

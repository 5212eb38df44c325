"""kill -9 in the middle of a search: the next run goes on from there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from data_tools.config import CommonsConfig, FlickrConfig, OpenverseConfig
from data_tools.demo.server import ApiFaults
from data_tools.search import stage
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

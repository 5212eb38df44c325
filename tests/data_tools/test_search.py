import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from data_tools import candidates as merge
from data_tools import match, queries, schema, search
from data_tools.config import DatasetJob, PoolConfig
from data_tools.demo.server import ApiFaults, Scripted, serve
from data_tools.schema import (
    CANDIDATES,
    FATES,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)
from tests.data_tools.local_web import CONTACT, animals, job_for
from tests.data_tools.tables import candidate

# Finds: every cat by three of them, one cat by "no 3", the dog by "dog", nothing by "zebra".
QUERIES = ["cat", "zebra", "dog", "shadow", "no 3", "cat shadow"]


def run_on(job, paths):
    return {
        name: count
        for stage in (queries, match, search, merge)
        for name, count in stage.run(job, paths).items()
    }


def candidates(paths):
    return read_table(paths.table("candidates"), CANDIDATES)


def cursor_file(paths):
    (file,) = paths.search_cursor.iterdir()
    return file


def asked(commons, limit="50"):
    """Each request with that page size that got a result, as (words, offset)."""
    return Counter(
        (request["gsrsearch"], request.get("gsroffset", "0"))
        for request in commons.api_requests
        if request["gsrlimit"] == limit
    )


def port_of(commons):
    return {"api": urlsplit(commons.endpoint).port} | {
        site: int(host.split(":")[1]) for site, host in commons.site_hosts.items()
    }


def test_candidates_are_merged_over_queries(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES, page_size=2)
        counts = run_on(job, paths)
    rows = {row["url"].rpartition("/")[2]: row for row in candidates(paths).to_pylist()}
    assert sorted(rows) == [f"Cat_{number:02d}.png" for number in range(5)] + ["Dog.png"]
    assert rows["Cat_03.png"]["query_ids"] == [0, 3, 4, 5]
    assert rows["Cat_01.png"]["query_ids"] == [0, 3, 5]
    assert rows["Dog.png"]["query_ids"] == [2]
    for row in rows.values():
        assert row["uid"] == make_uid(row["url"], row["caption"])
        assert row["source"] == "commons"
    assert counts["queries_without_candidates"] == 1
    assert counts["candidates"] == 6
    fates = read_table(paths.fates("search"), FATES).to_pylist()
    assert {fate["uid"] for fate in fates} == {row["uid"] for row in rows.values()}
    assert {fate["status"] for fate in fates} == {"found"}


def test_the_table_does_not_depend_on_timing(tmp_path):
    faults = ApiFaults(maxlag_every=3, ratelimited_every=4, retry_after_s=0)
    with serve(animals(20)) as commons:
        job, paths = job_for(tmp_path / "threads", commons.endpoint, QUERIES, page_size=3)
        run_on(job, paths)
        assert "concurrency" not in commons.refused
        ports = port_of(commons)
    with serve(animals(20), faults=faults, ports=ports) as commons:
        job, other = job_for(tmp_path / "one", commons.endpoint, QUERIES, page_size=7)
        job.sources.commons.concurrency = 1
        job.sources.max_attempts = 9
        run_on(job, other)
        assert set(commons.refused) == {"maxlag", "ratelimited"}
    assert candidates(paths).equals(candidates(other))


def test_three_connections_at_most(tmp_path):
    with serve(animals(5), faults=ApiFaults(latency_s=0.02)) as commons:
        many = [f"cat {number}" for number in range(30)]
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", *many])
        run_on(job, paths)
    assert commons.refused == []


def test_a_second_run_asks_nothing(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        run_on(job, paths)
        first = candidates(paths)
        num_requests = len(commons.api_requests)
        counts = run_on(job, paths)
    assert len(commons.api_requests) == num_requests
    assert counts["resumed"] == len(QUERIES)
    assert candidates(paths).equals(first)


def test_a_longer_list_asks_for_the_new_queries_only(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", "dog"])
        run_on(job, paths)
        commons.api_requests.clear()
        job, paths = job_for(tmp_path, commons.endpoint, ["shadow", "dog", "cat"])
        run_on(job, paths)
    assert list(asked(commons)) == [("filetype:bitmap shadow", "0")]
    by_name = {row["caption"]: row["query_ids"] for row in candidates(paths).to_pylist()}
    assert by_name["A dog"] == [1]
    assert by_name["A cat & its shadow, no. 1"] == [0, 2]


def test_another_limit_is_another_search(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat"])
        job.search.limit_per_query = 2
        assert run_on(job, paths)["candidates"] == 2
        job.search.limit_per_query = 4
        assert run_on(job, paths)["candidates"] == 4
    assert len(list(paths.search_cursor.iterdir())) == 2


@pytest.mark.parametrize("torn", ['{"query": "dog", "candida', '{"query": "dog"}', "\0\0\0"])
def test_a_torn_last_line_is_asked_again(tmp_path, torn):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        run_on(job, paths)
        whole = candidates(paths)
        file = cursor_file(paths)
        lines = [line for line in file.read_text().splitlines() if '"query": "dog"' not in line]
        file.write_text("\n".join([*lines, torn]))
        commons.api_requests.clear()
        for _ in range(2):
            run_on(job, paths)
            assert candidates(paths).equals(whole)
    assert dict(asked(commons)) == {("filetype:bitmap dog", "0"): 1}


def test_a_server_that_goes_down_keeps_what_was_found(tmp_path):
    many = [*QUERIES, *(f"cat {number}" for number in range(20))]
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        run_on(job, paths)
        ports = port_of(commons)
    job, paths = job_for(tmp_path, commons.endpoint, many)
    job.sources.max_attempts = 2
    paths.table("candidates").unlink()
    with pytest.raises(DataError) as error:
        run_on(job, paths)
    told = str(error.value)
    assert commons.endpoint in told
    assert "5 queries in a row" in told and "ConnectError" in told
    assert "6 answered queries are kept in" in told and str(cursor_file(paths)) in told
    assert "run the same command" in told
    assert not paths.table("candidates").exists()
    with serve(animals(5), ports=ports) as commons:
        counts = run_on(job, paths)
    assert counts["resumed"] == len(QUERIES)
    assert not any(f"filetype:bitmap {query}" in dict(asked(commons)) for query in QUERIES)


def test_single_failures_do_not_stop_the_search(tmp_path, capsys):
    with serve(animals(5)) as commons:
        commons.scripted.append(Scripted(400, "that one I do not like"))
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        job.sources.commons.concurrency = 1
        counts = run_on(job, paths)
        assert counts["failed_queries"] == 1
        assert "'cat': HTTP 400: that one I do not like" in capsys.readouterr().err
        commons.api_requests.clear()
        assert run_on(job, paths)["failed_queries"] == 0
    assert list(asked(commons)) == [("filetype:bitmap cat", "0")]


def test_failures_apart_are_not_in_a_row(tmp_path):
    """Fifteen failures, an answer after every third."""
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, [f"cat {n:02d}" for n in range(20)])
        job.sources.commons.concurrency = 1
        job.search.give_up_after = 4
        answer = '{"batchcomplete": true}'
        one_round = [Scripted(400, "no")] * 3 + [Scripted(200, answer)]
        commons.scripted.extend(one_round * 5)
        with pytest.raises(DataError, match="no candidate was found: 15 queries failed"):
            run_on(job, paths)


def test_nothing_found_at_all_names_the_fix(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["zebra", "okapi"])
        with pytest.raises(DataError, match="use more common words"):
            run_on(job, paths)
    assert not paths.table("candidates").exists()


def test_pool_and_server_together(tmp_path):
    with serve(animals(2)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", "dog", "horse"])
        run_on(job, paths)
        known = candidates(paths).to_pylist()[0]
        rows = [
            {"url": known["url"], "caption": known["caption"]},
            {"url": "http://example.org/1.jpg", "caption": "A horse and a dog"},
            {"url": "http://example.org/2.jpg", "caption": "doghouse"},
            {"url": "http://[x", "caption": "dog"},
        ]
        file = tmp_path / "pool.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        job.sources.pool = PoolConfig(enabled=True, paths=[str(file)], license="CC0")
        counts = run_on(job, paths)
    table = {row["uid"]: row for row in candidates(paths).to_pylist()}
    assert len(table) == 4
    assert table[known["uid"]]["source"] == "commons"
    added = table[make_uid("http://example.org/1.jpg", "A horse and a dog")]
    assert added["query_ids"] == [1, 2]
    assert (added["source"], added["license"]) == ("pool", "CC0")
    assert counts["pool_rows"] == 4
    assert counts["pool_unmatched"] == 1
    assert counts["pool_unusable_urls"] == 1
    status = Counter(read_table(paths.fates("search"), FATES)["status"].to_pylist())
    assert status == {"found": 3, "matched": 1}


def test_a_pool_alone_needs_no_server(tmp_path):
    job, paths = job_for(tmp_path, "http://127.0.0.1:9/", ["cat"])
    file = tmp_path / "pool.csv"
    file.write_text("url,caption\nhttp://example.org/1.jpg,a dog\n")
    job.sources.commons.enabled = False
    job.sources.pool = PoolConfig(enabled=True, paths=[str(file)])
    with pytest.raises(DataError, match="the pool has nothing for any query"):
        run_on(job, paths)
    file.write_text("url,caption\nhttp://example.org/1.jpg,a cat\n")
    assert run_on(job, paths)["candidates"] == 1


def test_rows_merge_by_address_and_caption(tmp_path):
    paths = DatasetPaths(tmp_path)
    no_query = schema.QUERIES.empty_table()
    write_table(no_query, paths.table("queries"), schema.QUERIES)
    one = [_row("http://example.org/a", "x", "one", [3], license="CC0")]
    two = [
        _row("HTTP://EXAMPLE.org:80/a#top", "x", "pool", [1, 3]),
        _row("http://example.org/a", "y", "pool", [2]),
    ]
    write_table(pa.Table.from_pylist(one, CANDIDATES), paths.table("searched"), CANDIDATES)
    write_table(pa.Table.from_pylist(two, CANDIDATES), paths.matched / "a.parquet", CANDIDATES)
    merge.run(DatasetJob(), paths)
    rows = {row["caption"]: row for row in candidates(paths).to_pylist()}
    assert (rows["x"]["query_ids"], rows["x"]["license"]) == ([1, 3], "CC0")
    assert (rows["x"]["source"], rows["y"]["source"]) == ("one", "pool")
    fates = {
        row["uid"]: row["status"] for row in read_table(paths.fates("search"), FATES).to_pylist()
    }
    assert fates == {rows["x"]["uid"]: "found", rows["y"]["uid"]: "matched"}


def _row(url, caption, source, query_ids, **fields):
    uid = make_uid(url, caption)
    return candidate(url, caption, uid=uid, source=source, query_ids=query_ids, **fields)


SEARCH_ALONE = """
import sys
from pathlib import Path
from data_tools import candidates as merge
from data_tools import match, queries, search
from data_tools.config import load_job
from data_tools.schema import DatasetPaths
job = load_job(sys.argv[1:])
paths = DatasetPaths(Path(job.out_dir))
for stage in (queries, match, search, merge):
    stage.run(job, paths)
"""


def test_kill_9_then_resume_gives_the_same_table_and_asks_nothing_twice(tmp_path):
    many = [f"cat {number:02d}" for number in range(40)] + QUERIES
    with serve(animals(40), faults=ApiFaults(latency_s=0.03)) as commons:
        job, paths = job_for(tmp_path / "killed", commons.endpoint, many)
        # the page size tells the runs apart in the server's log; it does not change an answer
        command = [
            *(sys.executable, "-c", SEARCH_ALONE),
            *(f"out_dir={paths.root}", f"queries.path={job.queries.path}", "source=commons"),
            *(f"sources.contact='{CONTACT}'", "sources.commons.requests_per_second=1000"),
            f"sources.commons.endpoint='{commons.endpoint}'",
        ]
        process = subprocess.Popen([*command, "sources.commons.page_size=10"])
        try:
            deadline = time.monotonic() + 60
            while len(commons.api_requests) < 15 and time.monotonic() < deadline:
                time.sleep(0.005)
        finally:
            os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
        lines = cursor_file(paths).read_text().split("\n")[:-1]
        finished = [json.loads(line)["query"] for line in lines]
        assert 0 < len(finished) < len(many)

        subprocess.run([*command, "sources.commons.page_size=11"], check=True, timeout=120)
        before, after = asked(commons, "10"), asked(commons, "11")
        assert not {words for words, _ in after} & {f"filetype:bitmap {q}" for q in finished}
        assert max(after.values()) == 1
        # what was asked twice is what was on its way when the kill came
        assert len({words for words, _ in before} & {words for words, _ in after}) <= 3

        job, whole = job_for(tmp_path / "whole", commons.endpoint, many)
        run_on(job, whole)
    assert candidates(paths).equals(candidates(whole))

import dataclasses
import json
from collections import Counter
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from data_tools import candidates as merge
from data_tools import match, queries, search
from data_tools.build import build_stage
from data_tools.config import BraveConfig, DatasetJob, FlickrConfig, PoolConfig
from data_tools.demo.server import ApiFaults, Scripted
from data_tools.tables import schema
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)
from tests.data_tools.local_web import animals, job_for
from tests.data_tools.made_tables import candidate
from tests.data_tools.search.doubles.server import serve

# Finds: every cat by three of them, one cat by "no 3", the dog by "dog", nothing by "zebra".
QUERIES = ["cat", "zebra", "dog", "shadow", "no 3", "cat shadow"]


def run_on(job, paths):
    return {
        name: count
        for stage in (queries, match, search, merge)
        for name, count in stage.run(job, paths).items()
    }


def search_on(job, paths):
    """The search stage alone, of the queries as they are in the user's file."""
    with open(job.queries.path) as file:
        names = file.read().splitlines()
    rows = [
        {"query_id": number, "query": name, "folded": name, "origin": "user"}
        for number, name in enumerate(names)
    ]
    write_table(pa.Table.from_pylist(rows, schema.QUERIES), paths.table("queries"), schema.QUERIES)
    return search.run(job, paths)


def searched(paths):
    return read_table(paths.table("searched"), CANDIDATES)


def captions(paths):
    """By query id, in the order of the table."""
    found = {}
    for row in searched(paths).to_pylist():
        (query,) = row["query_ids"]
        found.setdefault(query, []).append(row["caption"])
    return found


def candidates(paths):
    return read_table(paths.table("candidates"), CANDIDATES)


def cursor_file(paths):
    (file,) = paths.search_cursor.glob("*.jsonl")
    return file


def asked(commons, limit="50"):
    """Each request with that page size that got a result, as (words, offset)."""
    return Counter(
        (request["gsrsearch"], request.get("gsroffset", "0"))
        for request in commons.api_requests
        if request["gsrlimit"] == limit
    )


def with_licence(pictures):
    by = "https://creativecommons.org/licenses/by/4.0/"
    return [dataclasses.replace(picture, license_url=by) for picture in pictures]


def searches_of(flickr):
    return [r for r in flickr.requests if r["method"] == "flickr.photos.search"]


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
        search_on(job, paths)
        assert "concurrency" not in commons.refused
        ports = port_of(commons)
    with serve(animals(20), faults=faults, ports=ports) as commons:
        job, other = job_for(tmp_path / "one", commons.endpoint, QUERIES, page_size=7)
        job.sources.commons.concurrency = 1
        job.sources.max_attempts = 9
        search_on(job, other)
        assert set(commons.refused) == {"maxlag", "ratelimited"}
    assert searched(paths).equals(searched(other))


def test_three_connections_at_most(tmp_path):
    with serve(animals(5), faults=ApiFaults(latency_s=0.02)) as commons:
        many = [f"cat {number}" for number in range(30)]
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", *many])
        search_on(job, paths)
    assert commons.refused == []


def test_a_second_run_asks_nothing(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        search_on(job, paths)
        first = searched(paths)
        num_requests = len(commons.api_requests)
        counts = search_on(job, paths)
    assert len(commons.api_requests) == num_requests
    assert counts["resumed"] == len(QUERIES)
    assert searched(paths).equals(first)


def test_a_longer_list_asks_for_the_new_queries_only(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", "dog"])
        search_on(job, paths)
        commons.api_requests.clear()
        job, paths = job_for(tmp_path, commons.endpoint, ["shadow", "dog", "cat"])
        search_on(job, paths)
    assert list(asked(commons)) == [("filetype:bitmap shadow", "0")]
    assert captions(paths)[1] == ["A dog"]
    assert captions(paths)[0] == captions(paths)[2]


def test_another_limit_is_another_search(tmp_path):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat"])
        job.search.limit_per_query = 2
        assert search_on(job, paths)["answers"] == 2
        job.search.limit_per_query = 4
        assert search_on(job, paths)["answers"] == 4
    assert len(list(paths.search_cursor.glob("*.jsonl"))) == 2


@pytest.mark.parametrize("torn", ['{"query": "dog", "candida', '{"query": "dog"}', "\0\0\0"])
def test_a_torn_last_line_is_asked_again(tmp_path, torn):
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        search_on(job, paths)
        whole = searched(paths)
        file = cursor_file(paths)
        lines = [line for line in file.read_text().splitlines() if '"query": "dog"' not in line]
        file.write_text("\n".join([*lines, torn]))
        (paths.search_cursor / "commons.pages").unlink()
        commons.api_requests.clear()
        for _ in range(2):
            search_on(job, paths)
            assert searched(paths).equals(whole)
    assert dict(asked(commons)) == {("filetype:bitmap dog", "0"): 1}


def test_a_server_that_goes_down_keeps_what_was_found(tmp_path, capsys):
    many = [*QUERIES, *(f"cat {number}" for number in range(20))]
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        search_on(job, paths)
        ports = port_of(commons)
    job, paths = job_for(tmp_path, commons.endpoint, many)
    job.sources.max_attempts = 2
    paths.table("searched").unlink()
    with pytest.raises(DataError) as error:
        search_on(job, paths)
    told = str(error.value)
    assert told.startswith("20 queries got no answer")
    assert commons.endpoint in told
    assert "5 queries in a row" in told and "ConnectError" in told
    assert "6 answered queries are kept in" in told and str(cursor_file(paths)) in told
    assert "run the same command" in told and "search.max_failed_queries=20" in told
    assert "5 queries in a row" in capsys.readouterr().err
    assert not paths.table("searched").exists()
    with serve(animals(5), ports=ports) as commons:
        counts = search_on(job, paths)
    assert counts["resumed"] == len(QUERIES)
    assert not any(f"filetype:bitmap {query}" in dict(asked(commons)) for query in QUERIES)


def test_failed_queries_are_asked_again(tmp_path):
    with serve(animals(5)) as commons:
        commons.scripted.append(Scripted(400, "that one I do not like"))
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        job.sources.commons.concurrency = 1
        with pytest.raises(DataError) as error:
            search_on(job, paths)
        told = str(error.value)
        assert "1 query got no answer\n  commons 'cat': HTTP 400: that one I do not" in told
        assert "search.max_failed_queries=1" in told
        assert not paths.table("searched").exists()
        # the others were asked all the same
        assert len(asked(commons)) == len(QUERIES) - 1
        commons.api_requests.clear()
        assert search_on(job, paths)["failed_queries"] == 0
    assert list(asked(commons)) == [("filetype:bitmap cat", "0")]
    assert len(captions(paths)[0]) == 5


def test_failed_queries_may_be_allowed(tmp_path, capsys):
    with serve(animals(5)) as commons:
        commons.scripted.extend([Scripted(400, "no")] * 2)
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        job.sources.commons.concurrency = 1
        job.search.max_failed_queries = 2
        assert search_on(job, paths)["failed_queries"] == 2
    assert "2 queries got no answer" in capsys.readouterr().err
    assert 0 not in captions(paths) and captions(paths)[2] == ["A dog"]


def test_a_stage_with_failed_queries_is_not_done(tmp_path, capsys):
    """The marker of build.py: absent after a failure, so that the same command asks again."""
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        job.sources.commons.concurrency = 1
        for stage in ("queries", "match"):
            build_stage(stage, job)
        commons.scripted.append(Scripted(400, "no"))
        with pytest.raises(DataError, match="1 query got no answer"):
            build_stage("search", job)
        with pytest.raises(DataError, match="candidates needs the stage search, which is not done"):
            build_stage("candidates", job)
        num_requests = len(commons.api_requests)
        build_stage("search", job)
        assert len(commons.api_requests) == num_requests + 1
        build_stage("search", job)
        assert len(commons.api_requests) == num_requests + 1
    assert "(unchanged)" in capsys.readouterr().out


def test_failures_apart_are_not_in_a_row(tmp_path):
    """Fifteen failures, an answer after every third: the server is not given up."""
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, [f"cat {n:02d}" for n in range(20)])
        job.sources.commons.concurrency = 1
        job.search.give_up_after = 4
        answer = '{"batchcomplete": true}'
        one_round = [Scripted(400, "no")] * 3 + [Scripted(200, answer)]
        commons.scripted.extend(one_round * 5)
        with pytest.raises(DataError) as error:
            search_on(job, paths)
        assert not commons.scripted
    told = str(error.value)
    assert "15 queries got no answer" in told and "in a row" not in told
    assert told.count("HTTP 400") == 5  # the first few are told, however many there are


def test_one_server_that_stops_does_not_keep_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLICKR_API_KEY", "demo-flickr-key")
    with serve(with_licence(animals(5))) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        flickr = FlickrConfig(enabled=True, permission="x", requests_per_second=1000.0)
        flickr.endpoint = commons.flickr.endpoint
        job.sources.flickr = flickr
        job.sources.commons.concurrency = 1
        commons.scripted.append(Scripted(429, "enough", {"Retry-After": "7200"}))
        with pytest.raises(DataError) as error:
            search_on(job, paths)
        told = str(error.value)
        assert "(commons) is not asked any more: HTTP 429: enough" in told
        assert "asked again in 7200 s" in told and "flickr" not in told
        assert len(searches_of(commons.flickr)) == len(QUERIES)
        assert commons.api_requests == []
        # a second run within the two hours asks neither
        with pytest.raises(DataError, match="the server asked for a pause"):
            search_on(job, paths)
        assert commons.api_requests == [] and commons.refused == ["scripted"]
        assert len(searches_of(commons.flickr)) == len(QUERIES)
        (paths.search_cursor / "commons.rates").unlink()
        counts = search_on(job, paths)
    assert counts["resumed"] == len(QUERIES)
    sources = searched(paths)["source"].to_pylist()
    assert sources == ["commons"] * sources.count("commons") + ["flickr"] * sources.count("flickr")
    assert sources.count("commons") == sources.count("flickr") > 0


def test_a_missing_key_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv("BRAVE_API_KEY", raising=False)
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, QUERIES)
        job.sources.brave = BraveConfig(enabled=True, permission="x")
        with pytest.raises(DataError, match="^BRAVE_API_KEY is not set"):
            search_on(job, paths)
    assert commons.api_requests == []


def test_only_queries_that_the_pools_left_short_are_asked(tmp_path):
    """cat has 3 of 3, dog 2 of 3, zebra none, shadow 4: the distinct pairs count."""
    with serve(animals(5)) as commons:
        job, paths = job_for(tmp_path, commons.endpoint, ["cat", "zebra", "dog", "shadow"])
        search_on(job, paths)  # answers that deficit_only must not use
        commons.api_requests.clear()
        (paths.search_cursor / "commons.pages").unlink()
        cursor_file(paths).unlink()
        pairs = [(n, [0]) for n in range(3)] + [(3, [2]), (4, [2]), (4, [2]), (4, [2])]
        pairs += [(10 + n, [3]) for n in range(4)]
        rows = [
            candidate(f"http://x.org/{n}", str(n), source="pool", query_ids=ids) for n, ids in pairs
        ]
        paths.matched.mkdir(parents=True)
        file = paths.matched / "a.parquet"
        write_table(pa.Table.from_pylist(rows, CANDIDATES), file, CANDIDATES)
        job.search.deficit_only = True
        job.balance.max_per_query = 3
        counts = search_on(job, paths)
    assert sorted(words for words, _ in asked(commons)) == [
        "filetype:bitmap dog",
        "filetype:bitmap zebra",
    ]
    assert captions(paths) == {2: ["A dog"]}
    assert (counts["queries"], counts["queries_asked"], counts["answers"]) == (4, 2, 1)


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

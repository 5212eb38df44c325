"""A host that is slow by its own wish is waited for as long as was allowed, and named when that was
not enough."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from data_tools import crawl
from data_tools.config import CrawlConfig, fingerprint
from data_tools.crawl import child_processes
from data_tools.crawl.cut_hosts import CutHosts
from data_tools.crawl.part_plan import ROWS
from data_tools.crawl.stage import guard_settings
from data_tools.tables.schema import FATES, DataError, DatasetPaths, read_table
from tests.data_tools.crawl.hostile_server import hostile_site
from tests.data_tools.crawl.jobs import make_job, write_kept

SLOW = "User-agent: *\nCrawl-delay: {}\n"


def counted(*rows: tuple[str, str, str]) -> CutHosts:
    """Of a part with these (url, status, detail)."""
    uids = [str(number) for number in range(len(rows))]
    urls, statuses, details = zip(*rows, strict=True)
    table = {"uid": uids, "url": list(urls), "face_boxes": [None] * len(rows)}
    fates = {"uid": uids, "status": list(statuses), "http_status": [None] * len(rows)}
    cut = CutHosts()
    cut.add(pa.table(table, ROWS), pa.table({**fates, "detail": list(details)}, FATES))
    return cut


def busy(host: str, number: int, interval_s: float) -> tuple[str, str, str]:
    detail = f"{host} is asked once in {interval_s:g} s (Crawl-delay); the next turn is in 99 s"
    return f"http://{host}/{number}.jpg", "failed:host_busy", detail


def test_the_hosts_are_named_with_what_brings_their_urls():
    cut = counted(
        *(busy("a.example:80", number, 25) for number in range(40)),
        busy("a.example:80", 39, 25),  # a second caption of one URL
        busy("b.example", 0, 10),
        *(busy("c.example", number, 7200) for number in range(20)),
        ("http://user:secret@d.example/1", "failed:http_429", "asked not to be asked"),
        ("https://e.example/1", "failed:robots_unreachable", "robots.txt: failed:http_500"),
        ("https://f.example/1", "failed:timeout", ""),
        ("https://a.example/1", "fetched", ""),
    )
    assert cut.num_urls == 63
    head, *lines = cut.lines(CrawlConfig())
    assert "63 URLs were left out because of their hosts, 5 in all" in head
    again = "crawl.retry_rounds=2"
    for line, said in zip(
        lines,
        [
            f"a.example:80: 40 not asked, it is asked once in 25 s, which takes 1000 s; {again} "
            "crawl.max_host_wait_s=1000 fetches them",
            "c.example: 20 not asked, it is asked once in 7200 s, which takes 1.7 days; each "
            "further round brings about 1",
            f"b.example: 1 not asked, it is asked once in 10 s, which takes 10 s; {again} fetches",
            f"d.example: 1 refused, the host asks for a pause (HTTP 429); later, {again} asks",
            f"e.example: 1 not asked, its robots.txt can't be read; later, {again} asks",
        ],
        strict=True,
    ):
        assert line.strip().startswith(said)
    assert counted(("https://f.example/1", "failed:timeout", "")).lines(CrawlConfig()) == []


def test_many_hosts_are_counted_and_few_are_listed():
    cut = counted(*(busy(f"{number}.example", 0, 1) for number in range(50)))
    lines = cut.lines(CrawlConfig())
    assert len(lines) == 12 and lines[-1].strip() == "and 40 more, with fewer URLs each"


def test_only_the_last_round_waits_long(tmp_path):
    job = make_job(tmp_path, max_host_wait_s=900.0)
    assert guard_settings(job).host_wait_s == 60.0
    assert guard_settings(job, is_last=True).host_wait_s == 900.0
    job.crawl.max_host_wait_s = 5.0
    assert guard_settings(job).host_wait_s == guard_settings(job, is_last=True).host_wait_s == 5.0


def test_how_long_and_how_often_is_asked_makes_no_other_data_set():
    """A folder that was crawled before these settings were there goes on."""
    usual = fingerprint(CrawlConfig())
    assert fingerprint(CrawlConfig(max_host_wait_s=1.0)) == usual
    assert fingerprint(CrawlConfig(retry_rounds=0)) == usual
    assert fingerprint(CrawlConfig(retry_rounds=1)) != usual, "as it was"


@pytest.mark.slow
def test_a_slow_host_is_waited_for(tmp_path, capsys):
    with hostile_site(robots=SLOW.format(1)) as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(6)])
        job = make_job(tmp_path, allow_private=[site.host], max_host_wait_s=30.0)
        started = time.monotonic()
        counts = crawl.run(job, DatasetPaths(tmp_path))
        assert counts == {"kept": 6, "fetched": 6, "failed": 0, "rejected": 0}
        assert time.monotonic() - started > 5, "its pause was kept"
    assert "left out" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_wait_is_no_stall(tmp_path, monkeypatch):
    """Nothing is finished for longer than the stall timeout, because the host asks for a pause."""
    monkeypatch.setattr(child_processes, "START_UP_S", 0.0)
    with hostile_site(robots=SLOW.format(25)) as site:
        write_kept(tmp_path, [site.url("/n/1.jpg")])
        # a start takes longer than the timeout where the machine is busy: not as long as the pause
        job = make_job(tmp_path, allow_private=[site.host], stall_timeout_s=20.0)
        assert crawl.run(job, DatasetPaths(tmp_path))["fetched"] == 1


@pytest.mark.slow
def test_a_host_that_is_too_slow_is_named_and_another_round_brings_the_rest(tmp_path, capsys):
    paths = DatasetPaths(tmp_path)
    with hostile_site(robots=SLOW.format(2)) as site, hostile_site() as other:
        urls = [site.url(f"/n/{number}.jpg") for number in range(5)] + [other.url("/n/1.jpg")]
        write_kept(tmp_path, urls)
        hosts = [site.host, other.host]
        job = make_job(tmp_path, allow_private=hosts, max_host_wait_s=0.5)
        counts = crawl.run(job, paths)
        assert (counts["fetched"], counts["urls_of_cut_hosts"]) == (1, 5), (
            "tdmrep.json had the turn"
        )
        told = capsys.readouterr().out  # the host's first turn was tdmrep.json's
        assert f"{site.host}: 5 not asked, it is asked once in 2 s" in told
        assert "crawl.retry_rounds=1 crawl.max_host_wait_s=10" in told
        details = read_table(paths.fates("crawl"), FATES)["detail"].to_pylist()
        why = f"{site.host} is asked once in 2 s (Crawl-delay)"
        assert sum(why in detail for detail in details) == 5, "in the ledger, too"
        asked = other.requests.copy()
        # as told: the finished part stays, and the rest is asked for once
        job.crawl.retry_rounds, job.crawl.max_host_wait_s = 1, 10.0
        counts = crawl.run(job, paths)
        assert counts == {
            **{"kept": 6, "fetched": 6, "failed": 0, "rejected": 0},
            **{"retried": 5, "recovered": 5},
        }
        assert other.requests == asked
        assert all(site.requests[f"/n/{number}.jpg"] == 1 for number in range(5))


@pytest.mark.slow
def test_by_default_one_more_round_asks_again(tmp_path):
    with hostile_site() as site:
        write_kept(tmp_path, [site.url("/n/1.jpg"), site.url("/status/503")])
        job = make_job(tmp_path, allow_private=[site.host])
        job.crawl.retry_rounds = CrawlConfig().retry_rounds
        counts = crawl.run(job, DatasetPaths(tmp_path))
        assert (counts["fetched"], counts["retried"], counts["recovered"]) == (1, 1, 0)


@pytest.mark.slow
def test_where_only_busy_hosts_are_asked_the_error_says_what_to_raise(tmp_path):
    with hostile_site(robots=SLOW.format(5)) as site:
        write_kept(tmp_path, [site.url(f"/status/404?{number}") for number in range(5)])
        job = make_job(tmp_path, allow_private=[site.host], max_host_wait_s=0.0)
        with pytest.raises(DataError, match=r"5 failed:host_busy.*raise crawl\.max_host_wait_s"):
            crawl.run(job, DatasetPaths(tmp_path))

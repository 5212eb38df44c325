from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import build
from data_tools.config import (
    BalanceConfig,
    BraveConfig,
    CommonsConfig,
    FlickrConfig,
    OpenverseConfig,
    PlanConfig,
    SearxngConfig,
    SourcesConfig,
    load_job,
    validate,
)
from data_tools.config.plan import problems
from data_tools.plan import estimate as plan
from data_tools.search.limits import (
    OPENVERSE_KEYS,
    SourceLimits,
    brave_limits,
    commons_limits,
    flickr_limits,
    limits,
    openverse_limits,
    searxng_limits,
)
from data_tools.tables.schema import DatasetPaths, read_table
from tests.data_tools import worked_example


@pytest.fixture
def overrides(tmp_path, monkeypatch):
    """The worked example as query list and pool, with every server but SearXNG."""
    for name in OPENVERSE_KEYS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "q.txt").write_text("".join(f"{query}\n" for query in worked_example.QUERIES))
    urls = [f"http://e.org/{n}.jpg" for n in range(12)]
    table = pa.table({"url": urls, "caption": worked_example.CAPTIONS})
    pq.write_table(table, tmp_path / "pool.parquet")
    return [
        f"queries.path={tmp_path}/q.txt",
        f"out_dir={tmp_path}/out",
        "source=[pool,commons,openverse,flickr,brave]",
        f"sources.pool.paths=[{tmp_path}/pool.parquet]",
        "sources.contact=a@b.org",
        "sources.openverse.permission=granted",
        "sources.flickr.permission=granted",
        "sources.brave.permission=granted",
        "balance.max_per_query=2",
    ]


def run(overrides, *more, until=None):
    job = load_job([*overrides, *more])
    if until:
        build.build(job, until)
    assert plan.main([*overrides, *more]) == 0
    return json.loads((DatasetPaths(Path(job.out_dir)).root / "plan.json").read_text())


def test_a_query_list_that_no_build_made_is_made_for_the_plan(overrides, capsys):
    planned = run(overrides)
    assert planned["queries"] == 6 and planned["stages_done"] == []
    assert planned["pairs"] is None and len(planned["servers"]) == 4
    told = capsys.readouterr().out
    assert "6 queries, listed for this plan only" in told
    left = {path.name for path in _paths(overrides).root.iterdir()}
    assert left == {"plan.json"}
    build.build(load_job(overrides), "queries")
    assert "6 queries (unchanged)" not in capsys.readouterr().out
    assert run(overrides)["stages_done"] == ["queries"]


def test_the_plan_of_another_list_leaves_the_tables_alone(overrides, tmp_path):
    build.build(load_job(overrides), "match")
    files = [path for path in _paths(overrides).root.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.name != ".queries_inputs.json"}
    (tmp_path / "q2.txt").write_text("cat\ndog\nzebra\n")
    planned = run(overrides, f"queries.path={tmp_path}/q2.txt")
    assert planned["queries"] == 3 and planned["stages_done"] == []
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run(overrides)["stages_done"] == ["queries", "match"]


def test_a_list_that_cannot_be_read_is_told(overrides, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("!!!\n")
    assert plan.main(overrides) == 1
    assert "line 1: '!!!' has no letter or digit" in capsys.readouterr().err
    assert not [path for path in _paths(overrides).root.iterdir() if path.is_dir()]


def test_a_wrong_configuration_is_refused(overrides, capsys):
    assert plan.main([*overrides, "plan.disk_bytes_per_pair=0"]) == 2
    assert "plan.disk_bytes_per_pair = 0: must be >= 1" in capsys.readouterr().err


def test_without_matching_every_query_is_priced(overrides, capsys):
    planned = run(overrides, until="queries")
    assert planned["pairs"] is None and planned["download"] is None
    assert planned["queries"] == 6 and planned["stages_done"] == ["queries"]
    assert all(server["short"] is None for server in planned["servers"])
    requests = {server["name"]: server["all"]["requests"] for server in planned["servers"]}
    # 200 results: 4 pages of 50, 10 of 20 (anonymous), 1 of 500, 1 of 200
    assert requests == {"commons": 24, "openverse": 60, "flickr": 6, "brave": 6}
    assert "the match stage is not done" in capsys.readouterr().out


def test_the_worked_example_is_planned(overrides, capsys):
    """t = 2: ice hockey lacks 1, zebra 2; dog and car are capped; 20/3 pairs kept of 9 in 12 rows;
    half survive, so balancing keeps more: dog 2/3, car 4/5, and 1 - 1/3 * 1/5 of both."""
    planned = run(overrides, until="match")
    pairs = planned["pairs"]
    assert pairs["counted_from"] == "pools"
    assert (pairs["pool_rows"], pairs["pairs"], pairs["matched_share"]) == (12, 9, 0.75)
    assert pairs["queries_per_pair"] == pytest.approx(16 / 9)
    assert pairs["queries_without_pairs"] == 1 and pairs["capped_queries"] == 2
    assert pairs["per_query"]["most"] == 6 and pairs["per_query"]["mean"] == pytest.approx(16 / 6)
    assert pairs["expected_kept"] == pytest.approx(20 / 3)
    assert pairs["tail_share"] == 1 / 16
    assert (pairs["short_queries"], pairs["short_pairs"], pairs["fillable_pairs"]) == (2, 3, 3)
    out = capsys.readouterr().out
    assert "12  75.0% match a query" in out and "2  3 pairs are missing to t" in out
    short = read_table(plan.short_queries_path(_paths(overrides)), plan.SHORT_QUERIES)
    assert short.to_pylist() == [
        {"query_id": 5, "query": "zebra", "found": 0, "short": 2},
        {"query_id": 4, "query": "ice hockey", "found": 1, "short": 1},
    ]
    half = run(overrides, "balance.expected_survival=0.5")["pairs"]
    assert half["expected_kept"] == pytest.approx(5 + 2 / 3 + 2 / 3 + 4 / 5 + 14 / 15)
    assert half["expected_survivors"] == pytest.approx(half["expected_kept"] / 2)


def _paths(overrides):
    return DatasetPaths(Path(load_job(overrides).out_dir))


def test_both_costs_side_by_side(overrides, capsys):
    planned = run(overrides, "sources.openverse.requests_per_second=1", until="match")
    brave = next(server for server in planned["servers"] if server["name"] == "brave")
    assert brave["all"] == {
        "queries": 6,
        "requests": 6,
        "days": pytest.approx(6 / 86400),
        "usd": pytest.approx(0.03),
        "results": 1200,
    }
    assert brave["short"]["requests"] == 2 and brave["short"]["usd"] == pytest.approx(0.01)
    openverse = next(server for server in planned["servers"] if server["name"] == "openverse")
    assert openverse["all"]["days"] == pytest.approx(0.6)  # 60 requests at 100 a day
    out = capsys.readouterr().out
    assert "brave, every query" in out and "brave, deficit_only" in out
    assert "no scraping of the catalogue" in out


def test_the_download_follows_from_what_is_kept(overrides):
    more = ["plan.images_per_s_per_core=10", "plan.download_bytes_per_pair=1000"]
    more += ["plan.disk_bytes_per_pair=100", "crawl.image_size=512", "crawl.processes=2"]
    download = run(overrides, *more, "balance.expected_survival=0.5", until="match")["download"]
    kept = 5 + 2 / 3 + 2 / 3 + 4 / 5 + 14 / 15
    assert download["pairs"] == pytest.approx(kept)
    assert download["bytes"] == pytest.approx(1000 * kept)
    assert download["disk_bytes"] == pytest.approx(100 * 4 * kept / 2)
    assert download["days"] == pytest.approx(kept / 20 / 86400)
    assert download["megabits_per_s"] == pytest.approx(20 * 1000 * 8 / 1e6)


def test_a_chosen_t_is_planned_with(overrides):
    more = ["balance.max_per_query=null", "balance.target_pairs=7"]
    assert run(overrides, *more, until="match")["pairs"]["max_per_query"] == 3


def test_a_pair_that_two_files_have_is_counted_once(overrides, tmp_path):
    table = pq.read_table(tmp_path / "pool.parquet")
    pq.write_table(table, tmp_path / "again.parquet")
    more = f"sources.pool.paths=[{tmp_path}/pool.parquet,{tmp_path}/again.parquet]"
    pairs = run(overrides, more, until="match")["pairs"]
    assert pairs["pairs"] == 9 and pairs["expected_kept"] == pytest.approx(20 / 3)
    assert pairs["short_pairs"] == 3 and pairs["matched_share"] == 0.75


def test_after_other_settings_old_counts_do_not_count(overrides):
    run(overrides, until="match")
    Path(overrides[0].split("=")[1]).write_text("wombat\n")
    run(overrides, until="queries")
    assert run(overrides)["pairs"] is None


def test_without_servers_search_is_not_priced(overrides, capsys):
    more = [f"sources.{name}.enabled=false" for name in ("commons", "openverse", "flickr", "brave")]
    assert run(overrides, *more, until="match")["servers"] == []
    assert "Search: no server is enabled" in capsys.readouterr().out


def test_what_500000_queries_cost():
    """The published limits, for one pass over 500,000 queries."""

    def days(of: SourceLimits, wanted: int) -> float:
        return of.days(500_000 * of.pages(wanted))

    anonymous, keyed = (openverse_limits(OpenverseConfig(), has_key) for has_key in (False, True))
    assert days(anonymous, 240) / 365 == pytest.approx(164, abs=1)
    assert days(keyed, 240) == pytest.approx(50)
    assert days(flickr_limits(FlickrConfig()), 4000) == pytest.approx(46.3, abs=0.1)
    brave = brave_limits(BraveConfig())
    assert brave.usd(500_000 * brave.pages(10**6)) == 2500
    assert commons_limits(CommonsConfig()).pages(10**6) == 200
    assert commons_limits(CommonsConfig()).usd(5) is None
    assert searxng_limits(SearxngConfig(max_pages=3)).pages(10**6) == 3


def test_limits_of_enabled_servers_only(monkeypatch):
    for name in OPENVERSE_KEYS:
        monkeypatch.setenv(name, "x")
    sources = SourcesConfig()
    sources.brave.enabled = sources.openverse.enabled = True
    found = limits(sources)
    assert list(found) == ["openverse", "brave"]
    assert found["openverse"].quotas() == [(100, 60.0), (10_000, 86400.0)]
    monkeypatch.setenv(OPENVERSE_KEYS[0], " ")
    assert limits(sources)["openverse"].quotas() == [(5, 3600.0), (100, 86400.0)]


def test_figures_of_nothing_are_refused():
    assert problems(PlanConfig()) == []
    assert len(problems(PlanConfig(images_per_s_per_core=0, download_bytes_per_pair=-1))) == 2


def test_a_deficit_needs_a_fixed_t(overrides):
    job = load_job(overrides)
    job.search.deficit_only = True
    assert validate(job) == []
    job.balance = BalanceConfig(max_per_query=None, tail_share=0.06)
    assert any("search.deficit_only = True" in problem for problem in validate(job))

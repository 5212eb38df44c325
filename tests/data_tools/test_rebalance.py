from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import balance, rebalance
from data_tools.config import BalanceConfig, DatasetJob
from data_tools.tables import stream as table_stream
from data_tools.tables.schema import (
    BALANCED,
    CANDIDATES,
    CURATED,
    FATES,
    KEPT,
    UNITED,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from tests.data_tools.made_tables import candidate, fetched

MATCHES = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(sorted),
    min_size=1,
    max_size=50,
)


def candidate_rows(matches):
    rows = [
        candidate(f"http://e.org/{n}.jpg", f"c{n}", query_ids=ids) for n, ids in enumerate(matches)
    ]
    for row in rows:
        del row["keep_probability"]
    return sorted(rows, key=lambda row: row["uid"])


def job_of(**config):
    return DatasetJob(balance=BalanceConfig(**config))


def balanced_once(folder: Path, rows, job) -> DatasetPaths:
    paths = DatasetPaths(folder)
    write_table(pa.Table.from_pylist(rows, CANDIDATES), paths.table("candidates"), CANDIDATES)
    balance.run(job, paths)
    return paths


def curate(paths: DatasetPaths, survives) -> list[str]:
    """Curated rows of those kept that `survives` says; returns their uids."""
    kept = [r for r in read_table(paths.table("kept"), KEPT).to_pylist() if survives(r)]
    write_curated(paths, [(row, row["query_ids"]) for row in kept])
    return [row["uid"] for row in kept]


def write_curated(paths: DatasetPaths, kept, united=()) -> None:
    """Curated rows of these kept ones, with their query ids, and UNITED rows."""
    rows = [
        fetched(
            row["uid"],
            caption=row["caption"],
            captions=[row["caption"], "another"],
            query_ids=ids,
        )
        for row, ids in kept
    ]
    write_table(pa.Table.from_pylist(rows, CURATED), paths.table("curated"), CURATED)
    write_table(pa.Table.from_pylist(list(united), UNITED), paths.table("united"), UNITED)


def uids(paths: DatasetPaths, name: str, schema: pa.Schema) -> list[str]:
    found: list[str] = read_table(paths.table(name), schema)["uid"].to_pylist()
    return found


def by_half(row):
    return hashlib.sha256(row["uid"].encode()).digest()[0] < 128


def test_a_query_whose_links_lived_longer_is_thinned_to_t(tmp_path):
    """Of query 0 all survive, of query 1 a quarter; half was expected of both, so 400 were kept of
    each for t = 200. Query 0 is thinned to 200, query 1 keeps the 100 it has."""
    rows = candidate_rows([[0]] * 1000 + [[1]] * 1000)
    job = job_of(max_per_query=200, expected_survival=0.5)
    paths = balanced_once(tmp_path, rows, job)
    curate(paths, lambda row: row["query_ids"] == [0] or int(row["uid"], 16) % 4 == 0)
    counts = rebalance.run(job, paths)
    survival = pq_rows(tmp_path / "tables" / "survival.parquet")
    assert [row["candidates"] for row in survival] == [1000, 1000]
    assert survival[0]["survival"] == 1.0 and 0.18 < survival[1]["survival"] < 0.32
    assert abs(survival[0]["kept"] - 400) < 80
    assert abs(survival[0]["balanced"] - 200) < 65  # 5 standard deviations of 1,000 draws at 0.2
    assert survival[1]["balanced"] == survival[1]["curated"]
    assert counts["balanced"] == sum(row["balanced"] for row in survival)
    assert counts["dropped"] == counts["curated"] - counts["balanced"] > 100


def pq_rows(path: Path) -> list[dict]:
    rows: list[dict] = read_table(path, rebalance.SURVIVAL).to_pylist()
    return rows


def test_the_table_is_what_was_curated_with_the_final_probability(tmp_path):
    rows = candidate_rows([[0]] * 300 + [[0, 1]] * 20)
    job = job_of(max_per_query=40, expected_survival=0.25)
    paths = balanced_once(tmp_path, rows, job)
    curate(paths, lambda row: True)
    rebalance.run(job, paths)
    curated = {r["uid"]: r for r in read_table(paths.table("curated"), CURATED).to_pylist()}
    kept = {r["uid"]: r for r in read_table(paths.table("kept"), KEPT).to_pylist()}
    balanced = read_table(paths.table("balanced"), BALANCED).to_pylist()
    assert balanced and [row["uid"] for row in balanced] == sorted(row["uid"] for row in balanced)
    for row in balanced:
        final = row.pop("keep_probability")
        assert row == curated[row["uid"]]
        # all survived: t / 320 for those with query 0 alone
        alone = kept[row["uid"]]["query_ids"] == [0]
        assert final == (np.float32(40 / 320) if alone else 1.0)
        assert final <= kept[row["uid"]]["keep_probability"]


def test_what_is_dropped_is_told(tmp_path, capsys):
    rows = candidate_rows([[0]] * 300)
    job = job_of(max_per_query=60, expected_survival=0.5)
    paths = balanced_once(tmp_path, rows, job)
    alive = curate(paths, by_half)
    counts = rebalance.run(job, paths)
    told = capsys.readouterr().err.splitlines()[-1]
    rate = len(alive) / counts["kept"]
    assert f"{rate:.1%} of the kept pairs survived" in told
    assert f"balance.expected_survival={int(1000 * rate) / 1000:g}" in told
    assert counts["survival_percent"] == round(100 * rate)
    fates = read_table(paths.fates("rebalance"), FATES).to_pylist()
    left = set(uids(paths, "balanced", BALANCED))
    assert {row["uid"] for row in fates} == set(alive) - left
    assert {row["status"] for row in fates} <= {"dropped:rebalance"}


def test_batches_change_nothing(tmp_path, monkeypatch):
    rows = candidate_rows([[n % 3, 3] if n % 5 == 0 else [n % 3] for n in range(400)])
    job = job_of(max_per_query=40, expected_survival=0.5)
    tables = []
    for size in (65536, 17):
        monkeypatch.setattr(table_stream, "ROWS_PER_BATCH", size)
        monkeypatch.setattr(rebalance, "ROWS_PER_BATCH", size)
        paths = balanced_once(tmp_path / str(size), rows, job)
        curate(paths, by_half)
        rebalance.run(job, paths)
        tables.append(read_table(paths.table("balanced"), BALANCED))
    assert tables[0].num_rows > 0 and tables[0].equals(tables[1])
    assert not list(tmp_path.rglob("*.tmp"))


def test_rows_that_were_never_kept_are_refused(tmp_path):
    job = job_of(max_per_query=5)
    paths = balanced_once(tmp_path, candidate_rows([[0]] * 4), job)
    write_curated(paths, [({"uid": "0" * 32, "caption": "x"}, [0])])
    with pytest.raises(DataError, match="curated.parquet has 1 rows, 0 of them are among the kept"):
        rebalance.run(job, paths)
    assert not paths.table("balanced").exists()
    paths.table("united").unlink()
    with pytest.raises(DataError, match="united.parquet does not exist: delete .*curate.json"):
        rebalance.run(job, paths)


@settings(max_examples=25, deadline=None)
@given(
    MATCHES, st.integers(1, 12), st.sampled_from([1.0, 0.5, 0.2]), st.integers(0, 9), st.randoms()
)
def test_what_stays_was_kept_and_is_what_the_rates_say(tmp_path_factory, matches, t, s, seed, rand):
    """Nested in the first balancing; and the decision is that of one balancing by count * rate."""
    job = job_of(max_per_query=t, expected_survival=s, seed=seed)
    paths = balanced_once(tmp_path_factory.mktemp("nested"), candidate_rows(matches), job)
    alive = curate(paths, lambda row: rand.random() < 0.7)
    if not alive:
        return
    try:
        rebalance.run(job, paths)
    except DataError as error:
        assert "balancing left none" in str(error)
        return
    left = uids(paths, "balanced", BALANCED)
    assert set(left) <= set(alive) <= set(uids(paths, "kept", KEPT))
    survival = pq_rows(paths.root / "tables" / "survival.parquet")
    kept = read_table(paths.table("kept"), KEPT).to_pylist()
    for uid, row in ((row["uid"], row) for row in kept if row["uid"] in alive):
        missed = 1.0
        for query in row["query_ids"]:
            of_query = [r for r in kept if query in r["query_ids"]]
            rate = sum(1 / r["keep_probability"] for r in of_query if r["uid"] in alive)
            rate /= sum(1 / r["keep_probability"] for r in of_query)
            assert survival[query]["survival"] == pytest.approx(rate, rel=1e-6)
            missed *= 1 - min(1, t / (rate * survival[query]["candidates"]))
        draw = balance.unit_hashes([uid], seed)[0]
        if abs(draw - (1 - missed)) > 1e-9:
            assert (uid in left) == (draw < 1 - missed)


@settings(max_examples=25, deadline=None)
@given(MATCHES, st.integers(1, 12), st.randoms())
def test_it_is_balancing_the_survivors_directly_where_all_were_crawled(
    tmp_path_factory, matches, t, rand
):
    """expected_survival so low that the first balancing keeps all."""
    folder = tmp_path_factory.mktemp("direct")
    rows = candidate_rows(matches)
    job = job_of(max_per_query=t, expected_survival=0.01)
    paths = balanced_once(folder / "a", rows, job)
    assert len(uids(paths, "kept", KEPT)) == len(rows)
    alive = curate(paths, lambda row: rand.random() < 0.6)
    survivors = [row for row in rows if row["uid"] in alive]
    if not survivors:
        return
    direct = balanced_once(folder / "b", survivors, job_of(max_per_query=t))
    wanted = read_table(direct.table("kept"), KEPT)
    try:
        rebalance.run(job, paths)
    except DataError as error:
        assert "balancing left none" in str(error) and wanted.num_rows == 0
        return
    found = read_table(paths.table("balanced"), BALANCED)
    assert found["uid"].to_pylist() == wanted["uid"].to_pylist()
    assert found["keep_probability"].to_pylist() == pytest.approx(
        wanted["keep_probability"].to_pylist(), rel=1e-6
    )


@settings(max_examples=15, deadline=None)
@given(MATCHES, st.integers(1, 12))
def test_nothing_is_dropped_where_all_survive_as_expected(tmp_path_factory, matches, t):
    job = job_of(max_per_query=t)
    paths = balanced_once(tmp_path_factory.mktemp("all"), candidate_rows(matches), job)
    if not curate(paths, lambda row: True):
        return
    rebalance.run(job, paths)
    kept = read_table(paths.table("kept"), KEPT).select(["uid", "keep_probability"])
    assert read_table(paths.table("balanced"), BALANCED).select(kept.column_names).equals(kept)


def test_a_picture_of_several_pairs_counts_once_for_each_of_their_queries(tmp_path):
    """100 pictures, each found under another address by query 0, by query 1, and by both: what is
    left is one sample with both queries, and its survival is that of a pair in two for each."""
    rows = candidate_rows([[0]] * 100 + [[1]] * 100 + [[0, 1]] * 100)
    job = job_of(max_per_query=1000)
    paths = balanced_once(tmp_path, rows, job)
    kept = read_table(paths.table("kept"), KEPT).to_pylist()
    by_ids = {ids: [row for row in kept if row["query_ids"] == list(ids)] for ids in ((0,), (1,))}
    pairs = list(zip(by_ids[0,], by_ids[1,], strict=True))
    united = [{"uid": other["uid"], "main": main["uid"], "query_ids": [1]} for main, other in pairs]
    write_curated(paths, [(main, [0, 1]) for main, _ in pairs], united)
    counts = rebalance.run(job, paths)
    assert (counts["kept"], counts["curated"], counts["balanced"]) == (300, 100, 100)
    for row in pq_rows(tmp_path / "tables" / "survival.parquet"):
        assert (row["candidates"], row["kept"], row["curated"]) == (200, 200, 100)
        assert row["balanced"] == 100 and row["survival"] == 0.5
    balanced = read_table(paths.table("balanced"), BALANCED)
    assert balanced["query_ids"].to_pylist() == [[0, 1]] * 100


def test_the_pair_that_brings_a_query_weighs_for_it(tmp_path):
    """The picture of a pair of a frequent query (P = 0.05, weight 20) is that of a rare query's
    only pair (P = 1): of the rare query one in one has survived, not 20."""
    rows = candidate_rows([[0]] * 1000 + [[1]])
    job = job_of(max_per_query=50)
    paths = balanced_once(tmp_path, rows, job)
    kept = read_table(paths.table("kept"), KEPT).to_pylist()
    (rare,) = (row for row in kept if row["query_ids"] == [1])
    main = next(row for row in kept if row["query_ids"] == [0])
    united = [{"uid": rare["uid"], "main": main["uid"], "query_ids": [1]}]
    write_curated(paths, [(main, [0, 1])], united)
    rebalance.run(job, paths)
    frequent, only = pq_rows(tmp_path / "tables" / "survival.parquet")
    assert only["survival"] == 1.0 and only["balanced"] == 1
    assert frequent["survival"] == pytest.approx(1 / frequent["kept"])
    (row,) = read_table(paths.table("balanced"), BALANCED).to_pylist()
    assert row["uid"] == main["uid"] and row["query_ids"] == [0, 1]


def test_the_next_run_with_the_measured_rate_only_adds(tmp_path):
    rows = candidate_rows([[n % 2, 2] if n % 9 == 0 else [n % 2] for n in range(2000)])
    first = balanced_once(tmp_path / "a", rows, job_of(max_per_query=300))
    second = balanced_once(tmp_path / "b", rows, job_of(max_per_query=300, expected_survival=0.6))
    before, after = set(uids(first, "kept", KEPT)), set(uids(second, "kept", KEPT))
    assert before < after


def test_in_the_mean_over_seeds_a_query_ends_at_t(tmp_path):
    """Queries of 600 pairs that come alone, and survive at rates from 0.4 to 1: t = 100 of each,
    whatever the rate, since 0.4 was expected. 20 seeds: the mean's standard deviation is 2."""
    rows = candidate_rows([[n % 4] for n in range(2400)])
    rates = [0.4, 0.6, 0.8, 1.0]
    ends = np.zeros(4)
    for seed in range(20):
        job = job_of(max_per_query=100, expected_survival=0.4, seed=seed)
        paths = balanced_once(tmp_path / str(seed), rows, job)
        curate(paths, lambda row: int(row["uid"], 16) % 1000 < 1000 * rates[row["query_ids"][0]])
        rebalance.run(job, paths)
        survival = pq_rows(paths.root / "tables" / "survival.parquet")
        ends += [row["balanced"] for row in survival]
    assert abs(ends / 20 - 100).max() < 8

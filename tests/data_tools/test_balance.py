from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_tools import balance
from data_tools.config import BalanceConfig, DatasetJob
from data_tools.schema import (
    CANDIDATES,
    FATES,
    KEPT,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)

MATCHES = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(sorted),
    min_size=1,
    max_size=60,
)


def candidates(matches):
    rows = []
    for number, query_ids in enumerate(matches):
        url = f"http://example.org/{number}.jpg"
        row = dict.fromkeys(CANDIDATES.names)
        rows.append(row | {"uid": make_uid(url, "x"), "url": url, "query_ids": query_ids})
    return pa.Table.from_pylist(rows, CANDIDATES)


def run_on(table, folder, t, seed=0):
    paths = DatasetPaths(folder)
    write_table(table, paths.table("candidates"), CANDIDATES)
    job = DatasetJob(balance=BalanceConfig(max_per_query=t, seed=seed))
    counts = balance.run(job, paths)
    return counts, read_table(paths.table("kept"), KEPT), read_table(paths.fates("balance"), FATES)


def probabilities(matches, t):
    query_ids = pa.chunked_array([pa.array(matches, pa.list_(pa.int32()))])
    return balance.keep_probabilities(query_ids, balance.count_per_query(query_ids), t)


def test_the_worked_example():
    """Query 0 found 4 pairs, 1 found 2, 2 found 1; t = 1, so p = 1/4, 1/2, 1."""
    matches = [[0], [0, 1], [0, 1], [0, 2]]
    wanted = [1 / 4, 1 - 3 / 4 * 1 / 2, 1 - 3 / 4 * 1 / 2, 1.0]
    assert probabilities(matches, 1) == pytest.approx(wanted, abs=1e-15)


def test_what_no_query_found_is_not_kept():
    assert probabilities([[0], []], 1).tolist() == [1.0, 0.0]


def test_run_writes_kept_rows_and_a_fate_for_each(tmp_path):
    matches = [[0]] * 200 + [[0, 1]] * 3
    table = candidates(matches)
    counts, kept, fates = run_on(table, tmp_path, t=50)
    dropped = counts["dropped"]
    assert counts == {
        "candidates": 203,
        "capped_queries": 1,
        "dropped": dropped,
        "kept": 203 - dropped,
    }
    assert 0 < dropped < 200
    assert kept.num_rows == 203 - dropped
    assert set(table["uid"].to_pylist()[200:]) <= set(kept["uid"].to_pylist())
    of_single = [p for p, ids in zip(kept["keep_probability"], kept["query_ids"]) if len(ids) == 1]
    assert {p.as_py() for p in of_single} == {float(np.float32(50 / 203))}
    status = dict(zip(fates["uid"].to_pylist(), fates["status"].to_pylist()))
    assert sorted(status) == sorted(table["uid"].to_pylist())
    for uid in table["uid"].to_pylist():
        wanted = "kept" if uid in set(kept["uid"].to_pylist()) else "dropped:balance"
        assert status[uid] == wanted


def test_no_candidates_give_an_empty_table(tmp_path):
    counts, kept, _ = run_on(candidates([]), tmp_path, t=5)
    assert counts["kept"] == kept.num_rows == 0


def test_seeds_draw_differently(tmp_path):
    table = candidates([[0]] * 300)
    first = run_on(table, tmp_path / "a", t=150, seed=1)[1]["uid"].to_pylist()
    again = run_on(table, tmp_path / "b", t=150, seed=1)[1]["uid"].to_pylist()
    other = run_on(table, tmp_path / "c", t=150, seed=-2)[1]["uid"].to_pylist()
    assert first == again != other


def test_the_decision_is_not_the_order_of_another_hash_of_the_uid():
    """Sorting the kept by xxh64(uid) must not bring the improbable ones to the front."""
    uids = [make_uid(f"http://example.org/{number}", "x") for number in range(4000)]
    draw = balance.unit_hashes(uids, 0)
    other = np.array([xxhash.xxh64_intdigest(uid.encode(), 0) / 2**64 for uid in uids])
    assert abs(np.corrcoef(draw, other)[0, 1]) < 0.1


@given(st.lists(st.text(max_size=40), min_size=1), st.integers(-(2**63), 2**64 - 1))
def test_hashes_are_uniform_draws_below_one(uids, seed):
    draws = balance.unit_hashes(uids, seed)
    assert ((draws >= 0) & (draws < 1)).all()
    for uid, draw in zip(uids, draws):
        whole = xxhash.xxh64_intdigest(f"balance/{uid}".encode(), seed % 2**64)
        assert Fraction(float(draw)) == Fraction(whole >> 11, 2**53)


@given(MATCHES, st.integers(1, 70))
def test_probability_is_the_formula(matches, t):
    counts = {query: sum(query in ids for ids in matches) for ids in matches for query in ids}
    for p, ids in zip(probabilities(matches, t), matches):
        missed = Fraction(1)
        for query in ids:
            missed *= 1 - min(Fraction(1), Fraction(t, counts[query]))
        assert p == pytest.approx(float(1 - missed), abs=1e-12)


@given(MATCHES, st.integers(1, 70), st.integers(1, 70))
def test_a_larger_t_keeps_all_that_a_smaller_one_kept(matches, one, other):
    small, large = sorted((one, other))
    uids = candidates(matches)["uid"].to_pylist()
    draws = balance.unit_hashes(uids, 0)
    kept_small = draws < probabilities(matches, small)
    kept_large = draws < probabilities(matches, large)
    assert not (kept_small & ~kept_large).any()


@given(MATCHES, st.integers(1, 10), st.randoms())
def test_the_order_of_candidates_decides_nothing(matches, t, random):
    shuffled = list(range(len(matches)))
    random.shuffle(shuffled)
    direct = probabilities(matches, t)
    moved = probabilities([matches[number] for number in shuffled], t)
    assert moved.tolist() == direct[shuffled].tolist()

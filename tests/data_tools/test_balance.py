from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import balance
from data_tools.config import BalanceConfig, DatasetJob
from data_tools.config.balance import problems
from data_tools.tables import stream as table_stream
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    KEPT,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)
from tests.data_tools import worked_example

MATCHES = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(sorted),
    min_size=1,
    max_size=60,
)
SURVIVAL = st.sampled_from([1.0, 0.7, 0.25])


def candidates(matches):
    rows = []
    for number, query_ids in enumerate(matches):
        url = f"http://example.org/{number}.jpg"
        row = dict.fromkeys(CANDIDATES.names)
        rows.append(row | {"uid": make_uid(url, "x"), "url": url, "query_ids": query_ids})
    return pa.Table.from_pylist(rows, CANDIDATES)


def run_on(table, folder, t=0, **config):
    paths = DatasetPaths(folder)
    write_table(table, paths.table("candidates"), CANDIDATES)
    job = DatasetJob(balance=BalanceConfig(max_per_query=t, **config))
    counts = balance.run(job, paths)
    return counts, read_table(paths.table("kept"), KEPT), read_table(paths.fates("balance"), FATES)


def lists(matches):
    return pa.array(matches, pa.list_(pa.int32()))


def probabilities(matches, t, s=1.0):
    counts = balance.count_per_query([lists(matches)])
    return balance.keep_probabilities(lists(matches), balance.missed_per_query(counts, t, s))


def decide(matches, **config):
    """On batches of five."""
    parts = [lists(matches[start : start + 5]) for start in range(0, len(matches), 5)]
    counts = balance.count_per_query(parts)
    return balance.decide(counts, lambda: parts, BalanceConfig(**config))


def test_the_worked_example_is_counted():
    counts = balance.count_per_query([lists(worked_example.QUERY_IDS)])
    assert counts.tolist() == worked_example.COUNTS[: len(counts)]
    assert not any(worked_example.COUNTS[len(counts) :])


@pytest.mark.parametrize("t", worked_example.KEEP_PROBABILITIES)
def test_the_worked_example_is_balanced(t):
    wanted = [float(p) for p in worked_example.KEEP_PROBABILITIES[t]]
    assert probabilities(worked_example.QUERY_IDS, t) == pytest.approx(wanted, abs=1e-15)
    decision = decide(worked_example.QUERY_IDS, max_per_query=t)
    assert decision.expected_kept == pytest.approx(float(worked_example.EXPECTED_KEPT[t]))
    variance = sum(p * (1 - p) for p in worked_example.KEEP_PROBABILITIES[t])
    assert decision.expected_kept_sd == pytest.approx(float(variance) ** 0.5)
    assert decision.matches == 16 and decision.candidates == 12
    assert decision.capped_queries == sum(count > t for count in worked_example.COUNTS)


@pytest.mark.parametrize("t", worked_example.TAIL_SHARE)
def test_the_worked_example_has_its_tail(t):
    counts = np.array(worked_example.COUNTS)
    assert balance.tail_share(counts, t) == worked_example.TAIL_SHARE[t]


@pytest.mark.parametrize(("target", "t"), [(1, 1), (4, 1), (5, 2), (6, 2), (7, 3), (9, 6)])
def test_the_worked_example_reaches_a_target(target, t):
    """9 pairs match at all, and dog's 6 are all kept only with t = 6."""
    decision = decide(worked_example.QUERY_IDS, max_per_query=None, target_pairs=target)
    assert decision.max_per_query == t


@pytest.mark.parametrize(("share", "t"), [(0.06, 2), (0.3, 3), (0.32, 6), (0.99, 7)])
def test_the_worked_example_reaches_a_tail_share(share, t):
    assert decide(worked_example.QUERY_IDS, max_per_query=None, tail_share=share).max_per_query == t


def test_expected_survival_keeps_so_many_more():
    """Half survive, t = 2: dog keeps 2 / (0.5 * 6) = 2/3, car 2 / (0.5 * 5) = 4/5."""
    p = probabilities(worked_example.QUERY_IDS, 2, 0.5)
    assert p[1] == pytest.approx(2 / 3) and p[9] == pytest.approx(4 / 5)
    assert p[11] == pytest.approx(1 - 1 / 3 * 1 / 5)
    decision = decide(worked_example.QUERY_IDS, max_per_query=2, expected_survival=0.5)
    assert decision.capped_queries == 2  # 3 and 2.5 survivors
    assert decision.tail_share == 5 / 16  # cat, red car, ice hockey: 1, 1, 0.5


def test_what_no_query_found_is_not_kept():
    assert probabilities([[0], []], 1).tolist() == [1.0, 0.0]
    assert probabilities([[], [0], [], [0], []], 1).tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]
    assert probabilities([[], []], 1).tolist() == [0.0, 0.0]


def test_run_writes_kept_rows_and_a_fate_for_each(tmp_path):
    matches = [[0]] * 200 + [[0, 1]] * 3
    table = candidates(matches)
    counts, kept, fates = run_on(table, tmp_path, t=50)
    dropped = counts["dropped"]
    assert counts == {
        "candidates": 203,
        "max_per_query": 50,
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


def test_run_tells_what_was_decided(tmp_path, capsys):
    counts, _, _ = run_on(candidates([[0]] * 300 + [[1]] * 40), tmp_path, target_pairs=100)
    told = capsys.readouterr().err
    assert counts["max_per_query"] == 60  # 40 of query 1 and 60 of query 0
    assert "t = 60: 1 queries are capped; those below it have 11.8% of 340 matches" in told
    assert f"kept {counts['kept']} pairs, expected 100 +- 7" in told  # sqrt(300 * 1/5 * 4/5) = 6.9
    decision = json.loads((tmp_path / "tables" / "balance.json").read_text())
    assert decision["max_per_query"] == 60 and decision["kept"] == counts["kept"]
    assert decision["expected_kept"] == pytest.approx(100)


def test_a_target_out_of_reach_keeps_all_and_says_so(tmp_path, capsys):
    counts, kept, _ = run_on(candidates([[0]] * 30), tmp_path, target_pairs=31)
    assert kept.num_rows == 30 and counts["capped_queries"] == 0
    assert "balance.target_pairs = 31 is more than the candidates give" in capsys.readouterr().err


def test_no_candidates_give_an_empty_table(tmp_path):
    for config in ({"t": 5}, {"target_pairs": 5}, {"tail_share": 0.1}):
        counts, kept, _ = run_on(candidates([]), tmp_path, **config)
        assert counts["kept"] == kept.num_rows == 0


def test_batches_change_nothing(tmp_path, monkeypatch):
    table = candidates([[n % 7, 7] if n % 3 else [n % 7] for n in range(400)])
    whole = run_on(table, tmp_path / "a", target_pairs=150)
    monkeypatch.setattr(table_stream, "ROWS_PER_BATCH", 13)
    parts = run_on(table, tmp_path / "b", target_pairs=150)
    assert whole[0] == parts[0]
    assert whole[1].equals(parts[1]) and whole[2].equals(parts[2])
    assert pq.ParquetFile(tmp_path / "b" / "tables" / "kept.parquet").metadata.num_row_groups > 20


def test_a_failure_leaves_no_table(tmp_path, monkeypatch):
    def broken(uids, seed):
        raise OSError("no space left")

    monkeypatch.setattr(balance, "unit_hashes", broken)
    with pytest.raises(OSError, match="no space"):
        run_on(candidates([[0]]), tmp_path, t=5)
    assert sorted(path.name for path in (tmp_path / "tables").rglob("*.*")) == [
        "candidates.parquet"
    ]


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


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"max_per_query": None}, "t is to be chosen by something"),
        ({"max_per_query": -1}, "balance.max_per_query = -1: must be >= 1"),
        ({"target_pairs": 5}, "max_per_query = 20000 and balance.target_pairs = 5: each decides t"),
        ({"max_per_query": None, "target_pairs": 5, "tail_share": 0.1}, "keep one"),
        (
            {"max_per_query": None, "tail_share": 1.0},
            "balance.tail_share = 1.0: give more than 0, below 1",
        ),
        ({"expected_survival": 0.0}, "balance.expected_survival = 0.0: give more than 0"),
        ({"expected_survival": 1.1}, "balance.expected_survival = 1.1: give more than 0"),
    ],
)
def test_settings_that_contradict_are_refused(config, told):
    assert any(told in problem for problem in problems(BalanceConfig(**config)))


@pytest.mark.parametrize(
    "config",
    [{}, {"max_per_query": None, "target_pairs": 5}, {"max_per_query": None, "tail_share": 0.06}],
)
def test_settings_that_fit_are_not_refused(config):
    assert problems(BalanceConfig(**config)) == []


def test_t_is_that_of_the_configuration_or_the_one_chosen(tmp_path):
    paths = DatasetPaths(tmp_path)
    assert balance.chosen_max_per_query(BalanceConfig(max_per_query=7), paths) == 7
    chosen = BalanceConfig(max_per_query=None, tail_share=0.5)
    with pytest.raises(DataError, match="run python -m data_tools.build --stage balance first"):
        balance.chosen_max_per_query(chosen, paths)
    counts, _, _ = run_on(candidates([[0]] * 9 + [[1]] * 9 + [[2]]), tmp_path, tail_share=0.5)
    assert balance.chosen_max_per_query(chosen, paths) == counts["max_per_query"] == 10


@given(st.lists(st.text(max_size=40), min_size=1), st.integers(-(2**63), 2**64 - 1))
def test_hashes_are_uniform_draws_below_one(uids, seed):
    draws = balance.unit_hashes(uids, seed)
    assert ((draws >= 0) & (draws < 1)).all()
    for uid, draw in zip(uids, draws):
        whole = xxhash.xxh64_intdigest(f"balance/{uid}".encode(), seed % 2**64)
        assert Fraction(float(draw)) == Fraction(whole >> 11, 2**53)


@given(MATCHES, st.integers(1, 70), SURVIVAL)
def test_probability_is_the_formula(matches, t, s):
    counts = {query: sum(query in ids for ids in matches) for ids in matches for query in ids}
    for p, ids in zip(probabilities(matches, t, s), matches):
        missed = Fraction(1)
        for query in ids:
            missed *= 1 - min(Fraction(1), Fraction(t) / (Fraction(s) * counts[query]))
        assert p == pytest.approx(float(1 - missed), abs=1e-12)


@given(MATCHES, st.integers(1, 70), st.integers(1, 70), SURVIVAL)
def test_a_larger_t_keeps_all_that_a_smaller_one_kept(matches, one, other, s):
    small, large = sorted((one, other))
    uids = candidates(matches)["uid"].to_pylist()
    draws = balance.unit_hashes(uids, 0)
    kept_small = draws < probabilities(matches, small, s)
    kept_large = draws < probabilities(matches, large, s)
    assert not (kept_small & ~kept_large).any()


@given(MATCHES, st.integers(1, 10), st.randoms())
def test_the_order_of_candidates_decides_nothing(matches, t, random):
    shuffled = list(range(len(matches)))
    random.shuffle(shuffled)
    direct = probabilities(matches, t)
    moved = probabilities([matches[number] for number in shuffled], t)
    assert moved.tolist() == direct[shuffled].tolist()


@settings(max_examples=30, deadline=None)
@given(matches=st.lists(st.lists(st.integers(0, 5), max_size=3, unique=True).map(sorted)))
def test_every_kept_row_matched_a_query_and_no_other_is_kept(matches, tmp_path_factory):
    table = candidates(matches)
    _, kept, _ = run_on(table, tmp_path_factory.mktemp("kept"), t=100)
    wanted = [row["uid"] for row in table.to_pylist() if row["query_ids"]]
    assert kept["uid"].to_pylist() == wanted
    assert all(kept["query_ids"].to_pylist())


@given(MATCHES, st.integers(1, 60), SURVIVAL)
def test_bisection_finds_the_smallest_t_that_reaches_the_target(matches, target, s):
    decision = decide(matches, max_per_query=None, target_pairs=target, expected_survival=s)
    t = decision.max_per_query

    def survivors(at):
        return s * probabilities(matches, at, s).sum()

    if s * len(matches) < target:
        assert survivors(t) == pytest.approx(s * len(matches))
    else:
        assert survivors(t) >= target - 1e-6
        assert t == 1 or survivors(t - 1) < target


@given(MATCHES, st.floats(0.01, 0.99), SURVIVAL)
def test_bisection_finds_the_smallest_t_with_the_tail_share(matches, share, s):
    counts = balance.count_per_query([lists(matches)])
    t = decide(matches, max_per_query=None, tail_share=share, expected_survival=s).max_per_query
    assert balance.tail_share(counts, t, s) >= share
    assert t == 1 or balance.tail_share(counts, t - 1, s) < share


@pytest.mark.parametrize("seed", range(5))
def test_the_number_kept_is_within_the_binomial_bound_of_the_target(tmp_path, seed):
    """Zipf counts, as a real pool has; five standard deviations, once in 3.5 million runs."""
    random = np.random.default_rng(seed)
    drawn = np.minimum(random.zipf(1.3, (5000, 3)), 500) - 1
    matches = [sorted(set(row)) for row in drawn.tolist()]
    run_on(candidates(matches), tmp_path, target_pairs=1000, seed=seed)
    decision = json.loads((tmp_path / "tables" / "balance.json").read_text())
    # a step of t adds what the capped queries gain; all else is the draw
    assert 0 <= decision["expected_kept"] - 1000 <= decision["capped_queries"]
    bound = 5 * decision["expected_kept_sd"]
    assert 0 < bound < 200
    assert abs(decision["kept"] - decision["expected_kept"]) <= bound

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_tools import candidates, match
from data_tools.config import MatchConfig, PoolConfig, fingerprint
from data_tools.match import counts as pair_counts
from data_tools.match import counts_per_query, units
from data_tools.match.pool import Account, PoolFile
from data_tools.match.units import MatchSettings, Unit
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from data_tools.work.tasks import Task
from tests.data_tools import worked_example
from tests.data_tools.match.example_pool import (
    POOL,
    example_job,
    job_of,
    matched_rows,
    paths_with_queries,
    pool_table,
    states,
    uid,
)
from tests.data_tools.odd_folders import ODD_NAMES


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    job, paths = example_job(tmp_path / name)
    assert match.run(job, paths)["matched"] == 9
    assert counts_per_query(paths, 6).tolist() == worked_example.COUNTS


def candidates_of(job, paths):
    write_table(pa.Table.from_pylist([], CANDIDATES), paths.table("searched"), CANDIDATES)
    candidates.run(job, paths)
    rows = read_table(paths.table("candidates"), CANDIDATES).to_pylist()
    return rows, read_table(paths.fates("search"), FATES).to_pylist()


def test_the_worked_example(tmp_path):
    job, paths = example_job(tmp_path)
    counts = match.run(job, paths)
    assert counts["pool_rows"] == 12
    assert (counts["pool_unmatched"], counts["matched"]) == (3, 9)
    wanted = {uid(number): ids for number, ids in enumerate(worked_example.QUERY_IDS) if ids}
    assert {row["uid"]: row["query_ids"] for row in matched_rows(paths)} == wanted
    assert counts_per_query(paths, 6).tolist() == worked_example.COUNTS
    row = next(r for r in matched_rows(paths) if r["uid"] == uid(10))
    assert row == {
        "uid": uid(10),
        "url": "https://example.org/10.jpg",
        "caption": "Dog in a red car",
        "page_url": "",
        "license": "",
        "license_url": "",
        "attribution": "",
        "source": "pool",
        "query_ids": [0, 2, 3],
        "width": None,
        "height": None,
        "mature": None,
    }


def test_other_columns_go_along(tmp_path):
    paths = paths_with_queries(tmp_path / "out")
    table = pool_table().slice(0, 3)
    for name, values in (("W", [640, None, 1]), ("L", ["CC0", "?", "x"]), ("N", [0.9, 0.1, 0])):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, tmp_path / "a.parquet")
    job = job_of(paths, tmp_path / "a.parquet")
    job.sources.pool.width_column, job.sources.pool.license_column = "W", "L"
    job.sources.pool.mature_column, job.sources.pool.license = "N", "CC BY 4.0"
    match.run(job, paths)
    got = [(r["width"], r["license"], r["mature"]) for r in matched_rows(paths)]
    assert got == [(640, "CC0", True), (None, "CC BY 4.0", False), (1, "x", False)]


def test_repeated_pairs_count_once(tmp_path):
    job, paths = example_job(tmp_path)
    table = pool_table()
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "pool.parquet")
    table.slice(3, 4).to_pandas().to_csv(tmp_path / "again.csv", index=False)
    job.sources.pool.paths.append(f"{tmp_path}/*.csv")
    assert match.run(job, paths)["matched"] == 9 + 9 + 2
    assert counts_per_query(paths, 6).tolist() == worked_example.COUNTS
    assert counts_per_query(paths, 9).tolist() == [*worked_example.COUNTS, 0, 0, 0]
    assert counts_per_query(DatasetPaths(tmp_path / "none"), 2).tolist() == [0, 0]


@settings(
    max_examples=8,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # an example takes a second: shrinking a failure would take an hour
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_order_and_number_of_files_and_tasks_change_nothing(tmp_path, data):
    folder = tmp_path / str(time.monotonic_ns())
    folder.mkdir()
    rows = pool_table().to_pylist()
    # the same pairs again, under URLs that are the same address
    rows += [{**row, "url": row["url"].replace("example.org", "EXAMPLE.org")} for row in rows[3:9]]
    order = data.draw(st.permutations(range(len(rows))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    paths = paths_with_queries(folder / "out")
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)])):
        table = pa.Table.from_pylist([rows[n] for n in order[start:stop]], POOL)
        name = data.draw(st.integers(0, 9))
        pq.write_table(table, folder / f"{name}-{number}.parquet", row_group_size=2)
    unit_bytes = data.draw(st.sampled_from([400, 10**9]))
    job = job_of(paths, folder / "*.parquet", unit_bytes=unit_bytes)
    tasks = data.draw(st.integers(0, 3))
    shares = [match.run_share(job, paths, Task(n, tasks)) for n in range(tasks)]
    before = states(paths) if tasks else {}
    counts = match.run(job, paths)
    assert not before or states(paths) == before
    assert not shares or {name: sum(s[name] for s in shares) for name in counts} == counts
    assert counts["matched"] == 9 + 3
    merged, fates = candidates_of(job, paths)
    assert [row["uid"] for row in merged] == sorted(
        uid(n) for n, ids in enumerate(worked_example.QUERY_IDS) if ids
    )
    assert (merged, fates) == expected_merge(tmp_path)
    assert counts_per_query(paths, 6).tolist() == worked_example.COUNTS


def expected_merge(folder, found={}):  # noqa: B006 (the first result, which all others must equal)
    if folder not in found:
        job, paths = example_job_with_repeats(folder)
        match.run(job, paths)
        found[folder] = candidates_of(job, paths)
    return found[folder]


def example_job_with_repeats(folder):
    paths = paths_with_queries(folder / "expected")
    rows = pool_table().to_pylist()
    rows += [{**row, "url": row["url"].replace("example.org", "EXAMPLE.org")} for row in rows[3:9]]
    pq.write_table(pa.Table.from_pylist(rows, POOL), folder / "expected.parquet")
    return job_of(paths, folder / "expected.parquet"), paths


def test_repeated_pairs_count_once_wherever_batches_end():
    rows = [{"uid": uid, "query_ids": [number]} for number, uid in enumerate("aabbbc")]
    for size in (1, 2, 3, 6):
        batches = pa.Table.from_pylist(rows, pair_counts.COLUMNS).to_batches(size)
        got = [
            uid
            for batch in pair_counts._distinct(iter(batches))
            for uid in batch["uid"].to_pylist()
        ]
        assert got == ["a", "b", "c"]


def test_two_processes_give_what_one_gives(tmp_path):
    job, paths = example_job(tmp_path, unit_bytes=400)
    counts = match.run(job, paths)
    assert len(states(paths)) >= 4
    alone = matched_rows(paths)
    other = paths_with_queries(tmp_path / "two")
    job.match.processes = 2
    assert match.run(job, other) == counts
    assert matched_rows(other) == alone


def test_what_is_done_stays_and_what_changed_is_made_again(tmp_path):
    job, paths = example_job(tmp_path, unit_bytes=400)
    counts = match.run(job, paths)
    first = states(paths)
    next(paths.matched.iterdir()).unlink()
    (paths.matched / ".x.parquet.tmp").write_bytes(b"")
    (paths.matched / "other.parquet").write_bytes(b"")
    assert match.run(job, paths) == counts
    assert sum(states(paths)[name] != time for name, time in first.items()) == 1
    assert states(paths).keys() == first.keys()
    for change in (
        lambda: setattr(job.match, "case_sensitive", True),
        lambda: setattr(job.match, "max_caption_chars", 9),
        lambda: setattr(job.sources.pool, "license", "CC0"),
        lambda: paths_with_queries(paths.root, [*worked_example.QUERIES, "category"]),
        lambda: pq.write_table(pool_table(), tmp_path / "pool.parquet"),
    ):
        before = states(paths)
        change()
        match.run(job, paths)
        assert not before.items() & states(paths).items()
    job.sources.pool.enabled = False
    assert match.run(job, paths) == {"pool_rows": 0}
    assert states(paths) == {}


def test_units_of_earlier_rules_are_matched_again_and_it_is_said(tmp_path, capsys, monkeypatch):
    job, paths = example_job(tmp_path, unit_bytes=400)
    with monkeypatch.context() as patch:
        # what a version with the rules before these wrote, and half of it lost
        patch.setattr(units.MatchSettings.fingerprint, "__defaults__", (units.FORMAT - 1,))
        match.run(job, paths)
    tables = sorted(paths.matched.iterdir())
    assert len(tables) >= 4
    tables[0].unlink()
    before = states(paths)
    capsys.readouterr()
    match.run(job, paths)
    assert not before.items() & states(paths).items()
    told = capsys.readouterr().err
    assert f"match: {len(tables) - 1} of the {len(tables)} units to do were matched by an" in told
    match.run(job, paths)
    assert "earlier version" not in capsys.readouterr().err


def test_queries_that_are_the_same_are_named(tmp_path):
    job, paths = example_job(tmp_path)
    paths_with_queries(paths.root, ["cat", "the cat's eye", "dog", "the cat\u2019s eye"])
    with pytest.raises(DataError, match=r"\"the cat's eye\" and 'the cat\u2019s eye'.*Delete"):
        match.run(job, paths)
    paths_with_queries(paths.root, ["cat", "dog", "d\u00adog"])
    with pytest.raises(DataError, match=r"'dog' and 'd\\xadog'"):
        match.run(job, paths)


def test_every_row_is_accounted_for(tmp_path):
    rows = [
        ("http://x/1", "a cat"),
        ("http://x/1", None),
        (None, "a cat"),
        ("http://x/1", " \n "),
        ("ftp://x/1", "cat"),
        ("http://[x", "cat"),
        ("http://x/2", "cat " * 3000),
        ("http://x/3", "bird"),
        ("  http://x/4 ", "cat"),
    ]
    paths = paths_with_queries(tmp_path / "out")
    table = pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_bytes(
        b"url,caption\nhttp://x/5,caf\xe9\nbroken\nhttp://x/6,cat\nhttp://x/7,bird\n"
    )
    counts = match.run(job_of(paths, tmp_path / "*.*"), paths)
    assert counts == {
        "pool_units": 2,
        "pool_rows": 13,
        "pool_more_captions": 0,
        "pool_null": 3,
        "pool_unreadable": 2,
        "pool_not_http": 1,
        "pool_too_long": 1,
        "pool_unusable_urls": 1,
        "pool_unmatched": 2,
        "matched": 3,
    }
    assert sum(counts.values()) - 2 == 2 * counts["pool_rows"]


def test_a_broken_file_is_named_and_costs_nothing_of_the_others(tmp_path):
    job, paths = example_job(tmp_path)
    content = (tmp_path / "pool.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(
        content[: len(content) // 3] + b"\0" * 99 + content[-900:]
    )
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    job.sources.pool.paths += [f"{tmp_path}/none.csv"]
    with pytest.raises(DataError, match="none.csv has no column for"):
        match.run(job, paths)
    assert states(paths) == {}
    job.sources.pool.paths = [f"{tmp_path}/*.parquet"]
    with pytest.raises(DataError, match="bad.parquet"):
        match.run(job, paths)


def test_a_query_that_is_everywhere_costs_no_memory_for_each_place(tmp_path):
    """15,000 places in a caption of 9,999 characters, one row of 3 ids."""
    paths = paths_with_queries(tmp_path / "out", ["a", "a a", "a a a"])
    caption = " ".join(["a"] * 5000)
    table = pa.table({"url": [f"http://x/{n}" for n in range(90)], "caption": [caption] * 90})
    pq.write_table(table, tmp_path / "a.parquet")
    job = job_of(paths, tmp_path / "a.parquet")
    match.run(job, paths)
    assert counts_per_query(paths, 3).tolist() == [90, 90, 90]
    assert np.unique([len(row["query_ids"]) for row in matched_rows(paths)]).tolist() == [3]


# of the version in which quoted was true by default
UNITS_BEFORE = {
    (True, "a.parquet"): "df0b972759918b3e",
    (True, "a.csv"): "abe6acf2ebf373e7",
    (True, "a.tsv"): "cb0ea98fb1e6364c",
}


def unit_fingerprint(quoted, name):
    pool = PoolConfig(enabled=True, paths=["x"], quoted=quoted)
    settings = MatchSettings(pool, MatchConfig(), Path("q"), "d")
    return settings.fingerprint(Unit(PoolFile(name, 10, "1"), 0, 1), rules=1)


def test_units_that_were_matched_when_quoted_was_true_by_default_are_known():
    for (quoted, name), value in UNITS_BEFORE.items():
        assert unit_fingerprint(quoted, name) == value
    assert unit_fingerprint(None, "a.csv") == UNITS_BEFORE[True, "a.csv"]
    assert unit_fingerprint(None, "a.parquet") == UNITS_BEFORE[True, "a.parquet"]
    # quotes are text in it now
    assert unit_fingerprint(None, "a.tsv") == unit_fingerprint(False, "a.tsv")


def test_quoted_true_is_another_job_than_null_for_a_tsv_only(tmp_path):
    for name in ("a.csv", "b.tsv"):
        (tmp_path / name).write_text("")
    for name, same in (("a.csv", True), ("b.tsv", False)):
        by_default, given = (
            match.inputs(PoolConfig(enabled=True, paths=[f"{tmp_path}/{name}"], quoted=quoted))
            for quoted in (None, True)
        )
        assert (by_default == given) is same
    assert fingerprint(PoolConfig()) == fingerprint(PoolConfig(quoted=True))


def test_accounts_of_earlier_versions_are_read(tmp_path):
    stored = {"rows": 3, "null": 1, "matched": 2}
    account = Account.from_json(stored)
    assert (account.counts.rows, account.counts.matched, account.largest_cell) == (3, 2, 0)
    assert "largest" not in account.line("a.csv")
    assert Account.from_json(account.as_json()) == account

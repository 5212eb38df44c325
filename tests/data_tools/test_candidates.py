import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_tools import candidates
from data_tools.config import DatasetJob
from data_tools.tables import sort
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    QUERIES,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from tests.data_tools.made_tables import candidate

COLUMNS = CANDIDATES.names


def row(url="http://x/1", caption="cat", **values):
    filled = candidate(url, caption, **values)
    return {name: filled[name] for name in COLUMNS}


def prepare(folder, searched, *matched, num_queries=10):
    paths = DatasetPaths(folder)
    queries = [{"query_id": n, "query": str(n), "folded": str(n)} for n in range(num_queries)]
    write_table(pa.Table.from_pylist(queries, QUERIES), paths.table("queries"), QUERIES)
    write_table(pa.Table.from_pylist(searched, CANDIDATES), paths.table("searched"), CANDIDATES)
    for number, rows in enumerate(matched):
        table = pa.Table.from_pylist(rows, CANDIDATES)
        write_table(table, paths.matched / f"{number}.parquet", CANDIDATES)
    return paths


def run(paths):
    counts = candidates.run(DatasetJob(out_dir=str(paths.root)), paths)
    rows = read_table(paths.table("candidates"), CANDIDATES).to_pylist()
    fates = read_table(paths.fates("search"), FATES).to_pylist()
    return counts, rows, fates


def test_one_pair_from_everywhere_is_one_row(tmp_path):
    pool = row(source="pool", license="", query_ids=[7, 2])
    other = row("http://x/2", source="pool", query_ids=[1])
    searched = [row(source="openverse", query_ids=[3]), row(source="commons", query_ids=[2])]
    paths = prepare(tmp_path, searched, [pool], [other, pool])
    counts, rows, fates = run(paths)
    assert counts == {
        "rows": 5,
        "repeated": 3,
        "queries_without_candidates": 6,
        "candidates": 2,
    }
    by_url = {r["url"]: r for r in rows}
    assert by_url["http://x/1"] == {**searched[1], "query_ids": [2, 3, 7]}
    assert by_url["http://x/2"] == other
    assert [r["uid"] for r in rows] == sorted(r["uid"] for r in rows) == [f["uid"] for f in fates]
    status = {fate["uid"]: fate["status"] for fate in fates}
    assert status == {pool["uid"]: "found", other["uid"]: "matched"}


def test_what_is_known_comes_before_what_is_not(tmp_path):
    rows = [row(source="pool", width=width, mature=None) for width in (None, 9, 5)]
    assert run(prepare(tmp_path, [], rows))[1][0]["width"] == 5


def test_no_candidate_is_an_error_and_leaves_no_table(tmp_path):
    paths = prepare(tmp_path, [], [])
    with pytest.raises(DataError, match="no candidate was found"):
        run(paths)
    assert not paths.table("candidates").exists()
    left = [p.name for p in (tmp_path / "tables").rglob("*") if p.is_file()]
    assert sorted(left) == ["0.parquet", "queries.parquet", "searched.parquet"]


def test_search_must_have_run(tmp_path):
    paths = prepare(tmp_path, [], [row()])
    paths.table("searched").unlink()
    with pytest.raises(DataError, match="python -m data_tools.build --stage search"):
        run(paths)


ROWS = st.lists(
    st.builds(
        lambda number, source, license, width, ids: row(
            f"http://x/{number}", source=source, license=license, width=width, query_ids=ids
        ),
        st.integers(0, 3),
        st.sampled_from(["pool", "commons", "flickr"]),
        st.sampled_from(["", "CC0", "CC BY"]),
        st.sampled_from([None, 1, 2]),
        st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True).map(sorted),
    ),
    max_size=14,
)


def plain_merge(rows):
    """What the merge means, without batches."""
    groups: dict[str, list[dict]] = {}
    for one in rows:
        groups.setdefault(one["uid"], []).append(one)

    def key(one):
        fields = [one[name] for name in COLUMNS if name not in ("uid", "query_ids")]
        return [one["source"] == "pool", *((f is None, 0 if f is None else f) for f in fields)]

    return [
        {**min(group, key=key), "query_ids": sorted({q for one in group for q in one["query_ids"]})}
        for _, group in sorted(groups.items())
    ]


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, sizes=st.lists(st.integers(0, 5), max_size=8), order=st.randoms())
def test_batches_and_order_change_nothing(rows, sizes, order):
    shuffled = list(rows)
    order.shuffle(shuffled)
    shuffled.sort(key=lambda one: one["uid"])
    batches, start = [], 0
    for size in [*sizes, len(rows)]:
        part = shuffled[start : start + size]
        batches.append(pa.RecordBatch.from_pylist(part, CANDIDATES))
        start += size
    got = [one for batch in candidates.merged(iter(batches)) for one in batch.to_pylist()]
    assert got == plain_merge(rows)


@settings(
    max_examples=5,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(rows=ROWS.filter(bool), cut=st.integers(0, 14), order=st.randoms())
def test_division_into_files_changes_nothing(tmp_path_factory, rows, cut, order):
    shuffled = list(rows)
    order.shuffle(shuffled)
    paths = prepare(tmp_path_factory.mktemp("merge"), shuffled[:cut], shuffled[cut:], [])
    _, merged, fates = run(paths)
    assert merged == plain_merge(rows)
    assert [fate["status"] for fate in fates] == [
        "matched" if one["source"] == "pool" else "found" for one in merged
    ]


@pytest.mark.parametrize("memory_gb", [1e-4, 0.02, 2.0])
def test_the_memory_for_merging_changes_nothing(tmp_path, memory_gb):
    """10 MB of rows in hundreds of parts, in some, in one."""
    paths = prepare(tmp_path, [row("http://x/7", "7", source="commons", query_ids=[4])])
    for part in range(4):
        rows = [row(f"http://x/{n}", f"{n}", source="pool") for n in range(part * 900, 7000)]
        table = pa.Table.from_pylist(rows, CANDIDATES)
        write_table(table, paths.matched / f"{part}.parquet", CANDIDATES)
    job = DatasetJob(out_dir=str(tmp_path))
    job.match.merge_memory_gb = memory_gb
    counts = candidates.run(job, paths)
    assert (counts["rows"], counts["candidates"]) == (28_000 - 900 * 6 + 1, 7000)
    got = read_table(paths.table("candidates"), CANDIDATES).to_pylist()
    assert [one["uid"] for one in got] == sorted(
        row(f"http://x/{n}", f"{n}")["uid"] for n in range(7000)
    )
    assert [one["query_ids"] for one in got if one["source"] == "commons"] == [[0, 4]]
    assert not list((tmp_path / "tables").glob(".*"))


def test_more_parts_than_open_files_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sort.resource, "getrlimit", lambda kind: (100, 100))
    paths = prepare(tmp_path, [row(f"http://x/{n}", f"{n}") for n in range(5000)])
    job = DatasetJob(out_dir=str(tmp_path))
    job.match.merge_memory_gb = 1e-6
    with pytest.raises(DataError, match="ulimit -n"):
        candidates.run(job, paths)
    assert not list((tmp_path / "tables").glob(".*"))

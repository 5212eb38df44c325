"""A scratch database: what it spills, what it leaves, and how paths get into SQL."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.tables import scratch
from data_tools.tables.scratch import files_pattern, query_rows, scratch_database, sql_text

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


@pytest.mark.parametrize("name", ["plain", "q?x*", "it's [1]"])
def test_what_memory_does_not_hold_is_spilled_into_the_folder(tmp_path, name, monkeypatch):
    monkeypatch.setattr(scratch, "MEMORY_LIMIT", "60MB")
    query = "SELECT number, text FROM made ORDER BY text, number"
    with scratch_database(tmp_path / name / "scratch") as database:
        database.execute(
            "CREATE TABLE made AS SELECT range AS number, md5((range % 1000)::VARCHAR) || "
            "repeat(md5(range::VARCHAR), 3) AS text FROM range(600000)"
        )
        total, last = 0, ""
        for rows in query_rows(database, query, SCHEMA):
            texts = rows["text"].to_pylist()
            assert texts == sorted(texts) and last <= texts[0]
            total, last = total + rows.num_rows, texts[-1]
        held = sum(f.stat().st_size for f in (tmp_path / name).rglob("*") if f.is_file())
    assert total == 600_000 and held > 10_000_000
    assert list((tmp_path / name).iterdir()) == []


def test_a_scratch_of_a_killed_run_is_removed_first(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "work.duckdb").write_text("cut off")
    with scratch_database(tmp_path / "scratch") as database:
        assert database.execute("SELECT 1").fetchall() == [(1,)]
    assert list(tmp_path.iterdir()) == []


def test_rows_have_the_schema_that_was_asked_for(tmp_path):
    query = "SELECT 'x' AS text, $number AS number"
    with scratch_database(tmp_path / "scratch") as database:
        (rows,) = query_rows(database, query, SCHEMA, {"number": 7})
    assert rows.schema == SCHEMA and rows.to_pylist() == [{"number": 7, "text": "x"}]


NAMES = st.text("ab[]*?!-^'\"{} #%=\u00fc", min_size=1, max_size=8).filter(
    lambda name: name.strip()
)


@given(name=NAMES, sibling=NAMES)
def test_a_pattern_matches_its_own_folder_alone(tmp_path_factory, name, sibling):
    root = tmp_path_factory.mktemp("names")
    for folder in {name, sibling}:
        (root / folder).mkdir()
        pq.write_table(pa.table({"text": [folder]}), root / folder / "t.parquet")
    own = root / name
    with duckdb.connect() as database:
        for pattern in (files_pattern(own / "t.parquet"), files_pattern(own, "*.parquet")):
            query = "SELECT text FROM read_parquet($files)"
            assert database.execute(query, {"files": pattern}).fetchall() == [(name,)]
            query = f"SELECT text FROM read_parquet({sql_text(pattern)})"
            assert database.execute(query).fetchall() == [(name,)]

"""Rows of every format, and what is wrong with a file or a row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.match.pool import (
    RowCounts,
    csv_rows,
    find_files,
    formats,
    problems_of,
    read_batches,
    reading,
)
from data_tools.tables.schema import DataError
from tests.data_tools.match.pool.pool_files import FORMATS, USABLE, pairs, pool, read, write


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    config = pool(write(tmp_path, name), quoted=True if ".tsv" in name else None)
    assert pairs(config) == USABLE
    assert read(config)[1] == RowCounts(rows=6, null=2, not_http=1)


def test_parts_of_a_parquet_file_are_disjoint_and_together_all(tmp_path):
    config = pool(write(tmp_path, "a.parquet"))  # 3 row groups of 2
    for num_parts in (1, 2, 3, 5):
        parts = [pairs(config, part=part, num_parts=num_parts) for part in range(num_parts)]
        assert sum(parts, []) == USABLE
    assert parts.count([]) >= 2


def test_every_problem_of_a_file_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("link,text\nhttp://example.org,x\n")
    pq.write_table(pa.table({"url": ["x"], "alt": ["y"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"href": "x"}\n')
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    (tmp_path / "f.csv").write_bytes(b"PAR1")
    (tmp_path / "g.csv.gz").write_bytes(b"no gzip")
    pq.write_table(pa.table({"url": ["x"], "caption": [1]}), tmp_path / "h.parquet")
    (tmp_path / "i.json").write_text('{"annotations": [{"url": "x"}]}')
    config = pool(f"{tmp_path}/*.*")
    told = "\n".join(line for file in find_files(config) for line in problems_of(file, config))
    wanted = "a.csv has no column for sources.pool.url_column = 'url', sources.pool.caption_column"
    assert f"{wanted} = 'caption'; it has link, text" in told
    assert "b.parquet has no column for sources.pool.caption_column = 'caption'; it has url" in told
    assert "c.jsonl has no column for" in told and "it has href" in told
    assert "d.xlsx: unknown format" in told
    assert "g.csv.gz has no column for" in told and "it has no gzip" in told
    for name in ("e.parquet", "f.csv", "i.json"):
        assert f"{name} is not readable" in told
    assert "h.parquet: the column caption (caption) holds int64, not text" in told
    assert "records_field" in told
    with pytest.raises(DataError, match="none/\\*.csv' matches no file"):
        find_files(pool(f"{tmp_path}/none/*.csv"))


def test_bad_rows_cost_themselves_only(tmp_path):
    lines = [
        b"url,caption",
        b"http://example.org/1.jpg,caf\xe9",
        b"http://example.org/2.jpg,one,too many",
        b"http://example.org/3.jpg,fine",
        b"http://example.org/3\xff.jpg,fine",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl").write_bytes(
        b'{"url": "http://example.org/4.jpg", "caption": "fine too"}\n'
        b'{"url": "http://example.org/5.jpg", "capt\n'
        b"[1, 2]\n"
        b'{"url": 7, "caption": ["x"]}\n'
        b'{"url": "http://example.org/6.jpg", "caption": "half \\ud83d"}\n'
        b'{"url": "http://example.org/6.jpg", "caption": "caf\xe9"}\n\n'
    )
    (tmp_path / "c.json").write_bytes(
        b'[{"url": "http://example.org/7.jpg", "caption": "caf\xe9"}, 3,'
        b' {"url": "http://example.org/8.jpg", "caption": "fine [] three"}]'
    )
    table = pa.table(
        {
            "url": pa.array([b"http://x/9.jpg", b"http://x/9.jpg"], pa.binary()),
            "caption": pa.array([b"caf\xe9", b"fine four"], pa.binary()),
        }
    )
    strings = [pa.Array.from_buffers(pa.string(), 2, c.chunk(0).buffers()) for c in table.columns]
    pq.write_table(pa.table(strings, table.column_names), tmp_path / "d.parquet")
    columns, counts = read(pool(f"{tmp_path}/*"))
    assert columns["caption"] == ["fine", "fine too", "fine [] three", "fine four"]
    assert counts == RowCounts(rows=15, unreadable=11)


def test_captions_of_a_megabyte_are_counted(tmp_path):
    long, limit = "cat " * 500_000, "x" * 10
    rows = f"url\tcaption\nhttp://example.org/1.jpg\t{long}\nhttp://example.org/2.jpg\t{limit}\n"
    (tmp_path / "a.tsv").write_text(rows)
    columns, counts = read(pool(f"{tmp_path}/a.tsv"), max_caption_chars=10)
    assert columns["caption"] == [limit]
    assert counts == RowCounts(rows=2, too_long=1)
    assert pairs(pool(f"{tmp_path}/a.tsv"), max_caption_chars=2_000_000)[0][1] == long.strip()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_file_cut_off_is_an_error_that_names_it(tmp_path, name):
    path = write(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-20])
    config = pool(path)
    (file,) = find_files(config)
    with pytest.raises(DataError, match=name), reading(file):
        list(read_batches(file, config))


def test_batches_are_bounded_in_rows_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BATCH_ROWS", 4)
    monkeypatch.setattr(csv_rows, "BATCH_ROWS", 4)
    monkeypatch.setattr(formats, "JSON_BATCH_ROWS", 4)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        config = pool(write(tmp_path, name))
        (file,) = find_files(config)
        sizes = [len(b.columns["url"]) for b in read_batches(file, config) if b.columns]
        assert max(sizes) <= 4 and sum(sizes) == 6
    monkeypatch.setattr(formats, "BATCH_BYTES", 1)
    assert [len(b.columns["url"]) for b in read_batches(file, config)] == [1] * 6

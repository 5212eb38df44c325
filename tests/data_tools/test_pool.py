import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.config import PoolConfig
from data_tools.schema import DataError
from data_tools.sources import pool as pool_module
from data_tools.sources.pool import Pool

ROWS = [
    ("http://example.org/1.jpg", "a cat"),
    ("https://example.org/2.jpg", 'a "quoted",\nbroken dog'),
    ("http://example.org/3.jpg", None),
    ("ftp://example.org/4.jpg", "a bird"),
    (None, "a horse"),
    ("HTTP://EXAMPLE.ORG/5.jpg ", "猫"),
]
USABLE = [
    ("http://example.org/1.jpg", "a cat"),
    ("https://example.org/2.jpg", 'a "quoted", broken dog'),
    ("HTTP://EXAMPLE.ORG/5.jpg", "猫"),
]


def separated(rows, separator):
    def cell(text):
        return "" if text is None else '"' + text.replace('"', '""') + '"'

    lines = ["extra,url,caption".replace(",", separator)]
    lines += [f"1{separator}{cell(url)}{separator}{cell(caption)}" for url, caption in rows]
    return ("\n".join(lines) + "\n").encode()


def write(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        columns = {"url": [url for url, _ in ROWS], "caption": [text for _, text in ROWS]}
        pq.write_table(pa.table(columns), path, row_group_size=2)
        return path
    if ".jsonl" in name:
        rows = [{"url": url, "caption": caption} for url, caption in ROWS]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        content = separated(ROWS, "\t" if ".tsv" in name else ",")
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def read(pool):
    return [(row.url, row.caption) for batch in pool.batches() for row in batch]


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.tsv.gz", "a.jsonl.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    pool = Pool(PoolConfig(paths=[str(write(tmp_path, name))]))
    assert read(pool) == USABLE
    assert pool.counts() == {
        "pool_rows": 6,
        "pool_null": 2,
        "pool_not_http": 1,
        "pool_unreadable": 0,
    }


def test_patterns_are_expanded_in_order_and_files_read_once(tmp_path):
    for name in ("b.csv", "a.jsonl", "sub/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name)
    pool = Pool(PoolConfig(paths=[f"{tmp_path}/*.*", f"{tmp_path}/**/*.parquet", f"{tmp_path}/b*"]))
    assert [file.name for file in pool.files] == ["a.jsonl", "b.csv", "c.parquet"]
    assert read(pool) == USABLE * 3


def test_other_column_names_and_the_licence(tmp_path):
    (tmp_path / "laion.csv").write_text("TEXT,URL\na cat,http://example.org/1.jpg\n")
    config = PoolConfig(
        paths=[f"{tmp_path}/laion.csv"],
        url_column="URL",
        caption_column="TEXT",
        license="CC BY 4.0",
    )
    ((row,),) = Pool(config).batches()
    assert (row.url, row.caption) == ("http://example.org/1.jpg", "a cat")
    assert row.license == "CC BY 4.0"


def test_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "BATCH_ROWS", 4)
    pool = Pool(
        PoolConfig(paths=[str(write(tmp_path, "a.csv")), str(write(tmp_path, "a.parquet"))])
    )
    assert [len(batch) for batch in pool.batches()] == [2, 1, 2, 1]


def test_every_problem_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("link,text\nhttp://example.org,x\n")
    pq.write_table(pa.table({"url": ["x"], "alt": ["y"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"href": "x"}\n')
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    (tmp_path / "f.csv").write_bytes(b"")
    (tmp_path / "g.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError) as error:
        Pool(PoolConfig(paths=[f"{tmp_path}/*.*", f"{tmp_path}/none/*.csv"]))
    told = str(error.value)
    assert "a.csv has no column url, caption; it has link, text" in told
    assert "b.parquet has no column caption; it has url, alt" in told
    assert "c.jsonl has no column url, caption; it has href" in told
    assert "sources.pool.url_column" in told
    assert "d.xlsx: unknown format" in told
    for name in ("e.parquet", "f.csv", "g.csv.gz"):
        assert f"{name} is not readable" in told
    assert "none/*.csv' matches no file" in told


def test_bad_rows_cost_themselves_only(tmp_path):
    lines = [
        b"url,caption",
        b"http://example.org/1.jpg,caf\xe9",
        b"http://example.org/2.jpg,one,too many",
        b"http://example.org/3.jpg,fine",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl").write_text(
        '{"url": "http://example.org/4.jpg", "caption": "fine too"}\n'
        '{"url": "http://example.org/5.jpg", "capt\n'
        "[1, 2]\n"
        '{"url": 7, "caption": ["x"]}\n'
    )
    pool = Pool(PoolConfig(paths=[f"{tmp_path}/*"]))
    assert [caption for _, caption in read(pool)] == ["fine", "fine too"]
    assert pool.counts()["pool_unreadable"] == 5
    assert pool.counts()["pool_rows"] == 7


def test_a_caption_of_a_megabyte_is_read(tmp_path):
    long = "cat " * 500_000
    (tmp_path / "a.tsv").write_text(f"url\tcaption\nhttp://example.org/1.jpg\t{long}\n")
    ((_, caption),) = read(Pool(PoolConfig(paths=[f"{tmp_path}/a.tsv"])))
    assert len(caption) == 2_000_000 - 1


def test_a_file_cut_off_is_an_error_that_names_it(tmp_path):
    path = write(tmp_path, "a.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.jsonl.gz"):
        read(Pool(PoolConfig(paths=[str(path)])))

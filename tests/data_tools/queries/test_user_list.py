import bz2
import gzip
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.config import QueriesConfig
from data_tools.queries.user_list import read_user_list
from data_tools.tables.schema import DataError


def test_a_column_of_a_csv(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'\xef\xbb\xbfid,query\r\n1,Red panda\r\n2,"cat, black"\r\n3,\r\n4,#1 fan\r\n')
    found = read_user_list(QueriesConfig(path=str(path)))
    assert found.queries == [
        ("Red panda", "mine.csv:1"),
        ("cat, black", "mine.csv:2"),
        ("#1 fan", "mine.csv:4"),
    ]
    assert (found.num_lines, found.num_duplicates) == (4, 0)


def test_a_column_of_a_parquet_table(tmp_path, capsys):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"label": ["cat", None, "CAT", " dog "]}), path)
    found = read_user_list(QueriesConfig(path=str(path), column="label"))
    assert found.queries == [("cat", "mine.parquet:1"), ("dog", "mine.parquet:4")]
    assert "row 3: 'CAT' repeats row 1" in capsys.readouterr().err


def test_several_files_by_a_pattern_in_the_order_of_their_names(tmp_path, capsys):
    (tmp_path / "b.txt").write_text("dog\nCat\n")
    (tmp_path / "a.txt").write_text("cat\n")
    found = read_user_list(QueriesConfig(path=str(tmp_path / "*.txt")))
    assert found.queries == [("cat", "a.txt:1"), ("dog", "b.txt:1")]
    assert "b.txt line 2: 'Cat' repeats a.txt line 1" in capsys.readouterr().err


def test_a_missing_column_names_those_present(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("name,label\ncat,1\n")
    with pytest.raises(DataError, match="no column query; it has name, label: set queries.column"):
        read_user_list(QueriesConfig(path=str(path)))


def test_a_table_that_is_not_utf_8(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b"query\ncat\ncaf\xe9\n")
    with pytest.raises(DataError, match="mine.csv: line 3 is not UTF-8"):
        read_user_list(QueriesConfig(path=str(path)))


def test_a_column_of_lists_is_refused(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"query": [["cat"]]}), path)
    with pytest.raises(DataError, match="not a readable parquet table of text"):
        read_user_list(QueriesConfig(path=str(path)))


def test_an_empty_table_is_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("query\n\n")
    with pytest.raises(DataError, match="holds no query"):
        read_user_list(QueriesConfig(path=str(path)))


def test_a_name_with_brackets_is_a_file_and_no_pattern(tmp_path):
    path = tmp_path / "mine[1].txt"
    path.write_text("cat\n")
    assert read_user_list(QueriesConfig(path=str(path))).queries == [("cat", "mine[1].txt:1")]


def read(path, **values):
    return read_user_list(QueriesConfig(path=str(path), **values))


def refused(path, **values):
    with pytest.raises(DataError) as caught:
        read(path, **values)
    return str(caught.value)


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    ("name", "content"), [("m.txt", b"owl\nsea lion\n"), ("m.csv", b"query\nowl\nsea lion\n")]
)
def test_a_compressed_list_is_read_and_a_cut_one_named(tmp_path, suffix, name, content):
    path = tmp_path / f"{name}{suffix}"
    packed = PACKED[suffix](content)
    path.write_bytes(packed)
    assert [query for query, _ in read(path).queries] == ["owl", "sea lion"]
    (tmp_path / name).write_bytes(packed)  # told by its bytes
    assert len(read(tmp_path / name).queries) == 2
    path.write_bytes(packed[:-5])
    assert f"{path} is cut off or not {suffix[1:]}" in refused(path)


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
@pytest.mark.parametrize("name", ["m.txt", "m.csv"])
def test_unicode_of_every_kind_is_read(tmp_path, encoding, name):
    path = tmp_path / name
    header = "query\r\n" if name == "m.csv" else ""
    path.write_bytes(f"{header}owl\r\n\u00e9tude\r\n\u732b\r\n".encode(encoding))
    assert [query for query, _ in read(path).queries] == ["owl", "\u00e9tude", "\u732b"]


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "m.txt"
    long = b"ant, bee, " * 2000
    path.write_bytes(b"owl\nsea lion\n" + long + b"\n\xe9tude\n---\n\0\0\0\n")
    told = refused(path)
    assert "line 3 has 19,999 characters" in told and "one query per line" in told
    assert "line 4 is not UTF-8" in told
    assert "line 5: '---' has no letter or digit" in told
    assert "line 6: '' has no letter or digit" in told


def test_nul_bytes_are_left_out_with_a_word(tmp_path, capsys):
    path = tmp_path / "m.txt"
    path.write_bytes(b"owl\nsea\0lion\n\0 bee \0\n")
    assert [query for query, _ in read(path).queries] == ["owl", "sea lion", "bee"]
    told = capsys.readouterr().err
    assert "read as spaces:\n  line 2: 'sea lion'\n  line 3: 'bee'" in told


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.parquet"])
def test_a_column_that_is_there_twice_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "m.parquet":
        pq.write_table(pa.table([["owl"], ["auk"]], names=["label", "label"]), path)
    else:
        separator = "," if name == "m.csv" else "\t"
        path.write_text(f"label{separator}label\nowl{separator}auk\n")
    assert "the column label is there 2 times" in refused(path, column="label")


def test_columns_without_a_name_or_twice_elsewhere_do_not_matter(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(",x,query,x\n0,1,owl,2\n")
    assert read(path).queries == [("owl", "m.csv:1")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('id,query\n1,"owl\n2,auk\n3,"ant\n4,bee\n', "line 2: a double quote begins a cell"),
        ('id,query\n1,owl\n2,"auk\n3,ant\n', "line 3: a double quote begins a cell"),
        ('query\n"owl\nauk"\nant\n', "row 1 goes over several lines"),
    ],
)
def test_a_stray_quote_is_named_with_its_line(tmp_path, content, told):
    path = tmp_path / "m.csv"
    path.write_text(content)
    assert told in refused(path)


@pytest.mark.parametrize(
    ("values", "queries"),
    [
        (pa.array([None, None], pa.null()), None),
        (pa.array([float("nan"), 1984.0]), ["1984"]),
        (pa.array([7, 1984]), ["7", "1984"]),
        (pa.array(["owl", "auk"]).dictionary_encode(), ["owl", "auk"]),
        (pa.array(["owl\nlet", "auk"]), ["owl let", "auk"]),
        (pa.array([{"name": "owl"}]), None),
    ],
)
def test_columns_of_every_type(tmp_path, values, queries):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"query": values}), path)
    if queries is None:
        assert str(path) in refused(path)
    else:
        assert [query for query, _ in read(path).queries] == queries


def test_bytes_in_parquet_that_are_not_utf_8_are_named_with_their_row(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"query": [b"owl", b"caf\xe9"]}), path)
    assert "row 2: its query is not UTF-8" in refused(path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", b"PAR1....", "a parquet file: name it .parquet"),
        ("m.txt", b"PK\x03\x04....", "a zip archive"),
        ("m.jsonl", b'{"query": "owl"}\n', "JSON is not read as a list"),
        ("m.csv", b"query\n" + b"owl " * 40_000, "line 2: a cell is too long"),
        ("m.csv", b"owl\nauk\n", "give a list without a header line as .txt"),
        ("m.txt", "owl".encode("utf-16")[:-1], "no whole utf-16-le text"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert told in refused(tmp_path / name)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(
        st.one_of(
            st.sampled_from(["owl", "OWL", " \uff2f\uff37\uff2c ", "", "  ", "# note", "auk"]),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6),
        )
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_lines_read_and_lines_refused_are_the_lines_of_the_file(tmp_path, lines, end):
    path = tmp_path / "m.txt"
    path.write_bytes(end.join([*lines, "last"]).encode())
    try:
        found = read(path)
    except DataError as error:
        assert "has no letter or digit" in str(error)
        return
    (file,) = found.files
    assert file.num_rows == len(lines) + 1
    assert file.num_rows == file.num_queries + file.num_skipped + file.num_duplicates
    assert file.num_queries == len(found.queries)

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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

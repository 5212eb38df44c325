"""The queries stage on a plain list, a query per line."""

import pytest

from data_tools import queries
from data_tools.config import DatasetJob, QueriesConfig
from data_tools.tables.schema import QUERIES, DataError, DatasetPaths, read_table


def run_on(content, tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    paths = DatasetPaths(tmp_path / "out")
    job = DatasetJob(out_dir=str(tmp_path / "out"), queries=QueriesConfig(path=str(file)))
    return queries.run(job, paths), paths


def test_comments_blank_lines_and_duplicates(tmp_path, capsys):
    content = "# mine\n\nIce  hockey\n puck\t\nＩＣＥ hockey\nStraße\nSTRASSE\n".encode()
    counts, paths = run_on(content, tmp_path)
    assert counts == {"lines": 7, "duplicates": 2, "queries": 3}
    assert read_table(paths.table("queries"), QUERIES).to_pylist() == [
        {"query_id": 0, "query": "Ice hockey", "folded": "ice hockey", "origin": "list.txt:3"},
        {"query_id": 1, "query": "puck", "folded": "puck", "origin": "list.txt:4"},
        {"query_id": 2, "query": "Straße", "folded": "strasse", "origin": "list.txt:6"},
    ]
    told = capsys.readouterr().err
    assert "2 duplicate(s)" in told
    assert "line 5: 'ＩＣＥ hockey' repeats line 3" in told
    assert "line 7: 'STRASSE' repeats line 6" in told


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    _, paths = run_on(b"\xef\xbb\xbfcat\r\ndog\r\n", tmp_path)
    assert read_table(paths.table("queries"), QUERIES)["query"].to_pylist() == ["cat", "dog"]


def test_every_bad_line_is_told_at_once(tmp_path):
    with pytest.raises(DataError) as error:
        run_on(b"cat\n!!!\ncaf\xe9\n?\n", tmp_path)
    told = str(error.value)
    assert "list.txt" in told
    assert "line 2: '!!!' has no letter or digit" in told
    assert "line 3 is not UTF-8" in told
    assert "line 4: '?'" in told
    assert not (tmp_path / "out" / "tables" / "queries.parquet").exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only\n# comments\n"])
def test_a_list_without_queries_is_refused(content, tmp_path):
    with pytest.raises(DataError, match="holds no query"):
        run_on(content, tmp_path)


def test_utf_16_is_read(tmp_path):
    _, paths = run_on("cat\ndog\n".encode("utf-16"), tmp_path)
    assert read_table(paths.table("queries"), QUERIES)["query"].to_pylist() == ["cat", "dog"]


def test_a_folder_in_place_of_the_list(tmp_path):
    job = DatasetJob(queries=QueriesConfig(path=str(tmp_path)))
    with pytest.raises(DataError, match="is a folder; give the files in it"):
        queries.run(job, DatasetPaths(tmp_path / "out"))

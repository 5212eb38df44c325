"""JSON that is larger than memory, or never ends."""

import json

import pytest

from data_tools.match.pool import json_rows
from tests.data_tools.match.pool.pool_files import pool, read


def test_a_line_of_json_without_end_is_one_broken_row(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    good = '{"url": "http://example.org/1.jpg", "caption": "cat"}\n'
    (tmp_path / "a.jsonl").write_text(good + '{"url": "' + "x" * 5000 + '"}\n' + good)
    columns, counts = read(pool(f"{tmp_path}/a.jsonl"))
    assert (columns["caption"], counts.unreadable) == (["cat", "cat"], 1)


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 1 << 20])
def test_a_list_in_a_document_is_read_as_a_stream(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(json_rows, "READ_BYTES", read_bytes)
    rows = [{"url": f"http://x/{n}", "caption": "\u732b ]}," * n, "n": [{}]} for n in range(9)]
    document = {"info": {"a": [1]}, "annotations": rows, "rest": 1}
    (tmp_path / "a.json").write_text(json.dumps(document, ensure_ascii=False))
    with (tmp_path / "a.json").open("rb") as stream:
        assert list(json_rows.list_rows(stream, "annotations")) == rows

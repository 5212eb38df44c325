from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.tables.schema import (
    CANDIDATES,
    CURATED,
    FATES,
    FETCHED,
    KEPT,
    DataError,
    canonical_url,
    make_uid,
    read_table,
    write_table,
)


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.ORG/A.jpg", "http://example.org/A.jpg"),
        ("http://example.org:80/a.jpg", "http://example.org/a.jpg"),
        ("https://example.org:443/a.jpg", "https://example.org/a.jpg"),
        ("https://example.org:8443/a.jpg", "https://example.org:8443/a.jpg"),
        ("http://example.org", "http://example.org/"),
        ("http://example.org/a.jpg#top", "http://example.org/a.jpg"),
        ("http://example.org/a b.jpg", "http://example.org/a%20b.jpg"),
        ("http://example.org/caf\u00e9.jpg", "http://example.org/caf%C3%A9.jpg"),
        ("http://example.org/caf%C3%A9.jpg", "http://example.org/caf%C3%A9.jpg"),
        ("http://example.org/a.jpg?w=1&h=2", "http://example.org/a.jpg?w=1&h=2"),
        ("http://b\u00fccher.example/a.jpg", "http://xn--bcher-kva.example/a.jpg"),
        ("http://user:secret@example.org/a.jpg", "http://example.org/a.jpg"),
        ("http://[2001:DB8::1]:80/a.jpg", "http://[2001:db8::1]/a.jpg"),
        ("  http://example.org/a.jpg\n", "http://example.org/a.jpg"),
    ],
)
def test_canonical_url(url, canonical):
    assert canonical_url(url) == canonical
    assert make_uid(url, "a caption") == make_uid(canonical, "a caption")


paths = st.text(st.characters(codec="utf-8"), max_size=30)


@given(paths, paths)
def test_the_canonical_form_is_its_own_and_ascii(path, query):
    once = canonical_url(f"http://example.org/{path}?{query}")
    assert canonical_url(once) == once
    assert once.isascii() and " " not in once


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_a_uid_is_32_hex_digits_and_tells_captions_apart(one, other):
    first, second = make_uid("http://example.org/a", one), make_uid("http://example.org/a", other)
    assert len(first) == 32 and set(first) <= set("0123456789abcdef")
    assert (first == second) == (one == other)


def test_other_addresses_are_other_uids():
    urls = [
        "http://e.org/a",
        "https://e.org/a",
        "http://e.org/A",
        "http://e.org/a?b",
        "http://e.org:81/a",
    ]
    assert len({make_uid(url, "x") for url in urls}) == len(urls)


def test_a_table_has_exactly_its_schema(tmp_path):
    table = pa.table(
        {
            "detail": ["", "x"],
            "uid": ["1", "2"],
            "status": ["kept", "failed:dns"],
            "http_status": pa.array([None, 404], pa.int64()),
            "surplus": [1, 2],
        }
    )
    write_table(table, tmp_path / "deep" / "fates.parquet", FATES)
    assert pq.read_schema(tmp_path / "deep" / "fates.parquet").equals(FATES)
    assert read_table(tmp_path / "deep" / "fates.parquet", FATES)["http_status"].to_pylist() == [
        None,
        404,
    ]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["fates.parquet"]


def test_a_table_that_does_not_fit_leaves_the_old_one(tmp_path):
    path = tmp_path / "fates.parquet"
    write_table(FATES.empty_table(), path, FATES)
    before = path.read_bytes()
    bad = pa.table({"uid": ["1"], "status": ["x"], "http_status": ["no number"], "detail": [""]})
    with pytest.raises(pa.ArrowInvalid):
        write_table(bad, path, FATES)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fates.parquet"]


def test_a_missing_table_or_column_names_the_fix(tmp_path):
    with pytest.raises(
        DataError, match="kept.parquet does not exist: run the stage that writes it"
    ):
        read_table(tmp_path / "kept.parquet", KEPT)
    pq.write_table(pa.table({"uid": ["1"], "status": ["x"]}), tmp_path / "fates.parquet")
    with pytest.raises(DataError, match=r"lacks the column\(s\) \['http_status', 'detail'\]"):
        read_table(tmp_path / "fates.parquet", FATES)


def test_later_tables_extend_earlier_ones():
    assert set(CANDIDATES.names) < set(KEPT.names)
    assert set(FETCHED.names) < set(CURATED.names)

"""No row of a pool disappears without a word: lines swallowed by quotes, and files of which most
rows are lost."""

import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools import match
from data_tools.match.pool import csv_rows, find_files, read_batches, reading
from data_tools.tables.schema import DataError
from data_tools.text.streams import decompressed, utf8
from tests.data_tools.match.example_pool import job_of, paths_with_queries
from tests.data_tools.match.pool.pool_files import pairs, pool, read

ROWS = [(f"https://pics.example/{n}.png", f"bird {n}") for n in range(40)]


def lines_of(rows, separator=",", header="url,caption"):
    lines = [header.replace(",", separator)]
    return [*lines, *(separator.join(row) for row in rows)]


def told_of(tmp_path, content, name="a.csv", **values):
    """The message with which reading stops."""
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    config = pool(tmp_path / name, **values)
    (file,) = find_files(config)
    with pytest.raises(DataError) as caught, reading(file):
        list(read_batches(file, config))
    return str(caught.value)


def run(tmp_path, *files, **values):
    paths = paths_with_queries(tmp_path / "out", ["bird"])
    job = job_of(paths, *files)
    for name, value in values.items():
        setattr(job.sources.pool, name, value)
    return match.run(job, paths)


@pytest.mark.parametrize("quotes_at", [[5], [5, 30], [3, 7, 20]])
def test_a_stray_quote_in_a_csv_is_named_with_its_line(tmp_path, quotes_at):
    lines = lines_of(ROWS)
    for line in quotes_at:
        lines[line - 1] = lines[line - 1].replace(",bird", ',"bird')
    told = told_of(tmp_path, "\n".join(lines) + "\n")
    last = quotes_at[1] if len(quotes_at) > 1 else len(lines)
    assert f"line {quotes_at[0]}: a double quote begins a cell that swallows" in told
    assert f"swallows {last - quotes_at[0]} line(s)" in told
    assert "sources.pool.quoted=false" in told
    assert pairs(pool(tmp_path / "a.csv", quoted=False))[-1] == ROWS[-1]


@pytest.mark.parametrize("header", ["url,caption", "caption,url"])
def test_a_cell_that_is_well_formed_but_holds_whole_rows_is_named(tmp_path, header):
    rows = ROWS if header.startswith("url") else [(caption, url) for url, caption in ROWS]
    lines = lines_of(rows, header=header)
    # in line 4 the mark opens, in line 6 it ends the caption
    lines[3] = lines[3].replace("bird", '"bird')
    lines[5] = lines[5].replace("bird 4", 'bird 4"')
    content = "\n".join(lines) + "\n"
    assert "line 4: " in told_of(tmp_path, content)
    # the word that says that the cell is right
    assert len(pairs(pool(tmp_path / "a.csv", quoted=True))) == len(ROWS) - 2


def test_a_quote_in_a_column_that_is_not_read_is_named_too(tmp_path):
    lines = ["title,url,caption", *(f"t{n},{url},{text}" for n, (url, text) in enumerate(ROWS))]
    lines[10], lines[20] = f'"{lines[10]}', f'"{lines[20]}'
    assert "line 11: " in told_of(tmp_path, "\r\n".join(lines))


def test_a_quote_that_swallows_more_than_a_block_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 1000)
    lines = lines_of(ROWS * 5)
    lines[150] = lines[150].replace(",bird", ',"bird')
    assert "line 151: " in told_of(tmp_path, "\n".join(lines) + "\n")


def test_cells_over_several_lines_stay_cells(tmp_path):
    texts = [
        "two\nlines",
        "a link:\nhttps://x.example/1, and more",
        'he said ""hi""\n\nand left',
        "red, blue\r\nand green",
    ]
    lines = [*lines_of(ROWS), *(f'https://x.example/{n},"{t}"' for n, t in enumerate(texts))]
    (tmp_path / "a.csv").write_bytes(("\n".join(lines) + "\n\n").encode())
    found = [caption for _, caption in pairs(pool(tmp_path / "a.csv"))]
    assert found[len(ROWS) :] == [" ".join(t.replace('""', '"').split()) for t in texts]


def test_quotes_are_text_in_tsv(tmp_path):
    rows = [(url, f'"{text}' if n % 9 == 0 else text) for n, (url, text) in enumerate(ROWS)]
    (tmp_path / "a.tsv").write_text("\n".join(lines_of(rows, "\t")) + "\n")
    assert pairs(pool(tmp_path / "a.tsv")) == rows
    # of a tsv that does quote its cells, the message says what to set
    more = [f'{url}\t"{text}\nx\ny\nz"' for url, text in ROWS]
    (tmp_path / "b.tsv").write_text("\n".join([*lines_of(ROWS, "\t"), *more]) + "\n")
    with pytest.raises(DataError, match=r"line 43 has 1 cells.*sources.pool.quoted=true"):
        run(tmp_path, tmp_path / "b.tsv")
    assert run(tmp_path, tmp_path / "b.tsv", quoted=True)["matched"] == 80


def test_captions_that_stand_in_quotes_in_a_tsv_are_said(tmp_path, capsys):
    rows = [(url, f'"{text}"' if n < 3 else text) for n, (url, text) in enumerate(ROWS)]
    (tmp_path / "a.tsv").write_text("\n".join(lines_of(rows, "\t")) + "\n")
    assert run(tmp_path, tmp_path / "a.tsv")["matched"] == 40
    assert "3 captions stand in quotes" in capsys.readouterr().out


def test_a_file_of_which_most_rows_are_lost_stops_the_job(tmp_path):
    good = [json.dumps({"url": url, "caption": text}) for url, text in ROWS]
    (tmp_path / "good.jsonl").write_text("\n".join(good))
    half = [*good[:3], *['{"url": "https://x.example/1", "caption": 7}'] * 4]
    (tmp_path / "half.jsonl").write_text("\n".join(half))
    latin = [f"{url},caf\u00e9 {text}" for url, text in ROWS]
    (tmp_path / "latin.csv").write_bytes("\n".join(["url,caption", *latin]).encode("latin-1"))
    with pytest.raises(DataError) as caught:
        run(tmp_path, tmp_path / "*.*")
    told = str(caught.value)
    assert "half.jsonl: 4 of its 7 rows are unreadable; the first: line 4 has a caption" in told
    assert "latin.csv: 40 of its 40 rows are unreadable; the first: line 2 is not UTF-8" in told
    assert "good.jsonl" not in told
    assert run(tmp_path, tmp_path / "good.jsonl")["matched"] == 40


def test_every_file_has_a_line_about_its_rows(tmp_path, capsys):
    content = "\n".join([*lines_of(ROWS), "https://x.example/1,a,b", "ftp://x,bird,", ",bird"])
    (tmp_path / "a.csv").write_text(content)
    (tmp_path / "b.tsv").write_text("")
    counts = run(tmp_path, tmp_path / "*.*")
    first = capsys.readouterr().out
    told = "a.csv: 43 rows in the file, 41 read, 2 unreadable (4.7 %, the first: line 42"
    assert told in first
    assert "1 without URL or caption, largest cell 27 bytes" in first
    assert "b.tsv: 0 rows in the file" in first
    assert counts["pool_rows"] == 43
    # what is done says the same
    assert run(tmp_path, tmp_path / "*.*") == counts
    assert capsys.readouterr().out == first


def test_a_broken_row_that_is_not_utf_8_costs_itself_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 300)  # some blocks are out before the row comes
    lines = [line.encode() for line in lines_of(ROWS)]
    lines[5] += b",more"
    lines[30] += b",caf\xe9"
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines) + b"\n")
    columns, counts = read(pool(tmp_path / "a.csv"))
    assert columns["url"] == [url for n, (url, _) in enumerate(ROWS) if n not in (4, 29)]
    assert (counts.rows, counts.unreadable) == (40, 2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_unicode_of_every_kind_is_read(tmp_path, name, encoding):
    rows = [*ROWS, ("https://x.example/\u732b", "\u732b \U0001f426")]
    (tmp_path / name).write_bytes(text_of(rows, name).encode(encoding))
    assert pairs(pool(tmp_path / name)) == rows
    (tmp_path / name).write_bytes(gzip.compress(text_of(rows, name).encode(encoding)))
    assert pairs(pool(tmp_path / name)) == rows  # by its bytes, not by its name


def text_of(rows, name):
    if name.endswith("sv"):
        return "\r\n".join(lines_of(rows, "\t" if name.endswith(".tsv") else ",")) + "\r\n"
    objects = [{"url": url, "caption": text} for url, text in rows]
    if name.endswith(".json"):
        return json.dumps(objects)
    return "\n".join(json.dumps(item) for item in objects)


def test_utf_16_that_is_cut_off_is_an_error(tmp_path):
    content = text_of(ROWS, "a.csv").encode("utf-16")
    assert "a.csv cannot be read to its end: it is no whole utf-16-le" in told_of(
        tmp_path, content[:-1]
    )


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2"])
def test_compressed_text_is_told_by_its_bytes(codec):
    text = b"a line\n" * 1000
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(text)
    packed = sink.getvalue().to_pybytes()
    assert utf8(decompressed(io.BytesIO(packed))).read() == text
    with pytest.raises(OSError, match="Truncated"):
        decompressed(io.BytesIO(packed[:-4])).read()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_lines_that_end_with_cr_alone(tmp_path, name):
    content = text_of(ROWS, name).replace("\r\n", "\n").replace("\n", "\r")
    (tmp_path / name).write_text(content, newline="")
    assert pairs(pool(tmp_path / name)) == ROWS


def test_a_text_named_as_another_kind_is_named(tmp_path):
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), tmp_path / "p.parquet")
    (tmp_path / "a.csv").write_bytes((tmp_path / "p.parquet").read_bytes())
    with pytest.raises(DataError, match=r"a.csv.*a parquet file: name it .parquet"):
        run(tmp_path, tmp_path / "a.csv")


# -- rows read + rows refused = rows in the file

CELL = st.text(st.sampled_from('abc ,"\n\t\r\u00e9\u732b\\'), max_size=8)
ROW = st.tuples(st.one_of(st.none(), CELL), st.one_of(st.none(), CELL))


def accounted(config):
    """(rows that came out, rows that are counted)."""
    columns, counts = read(config)
    rest = {name: value for name, value in vars(counts).items() if name != "rows"}
    more = rest.pop("more_captions")
    come_out = len(columns.get("url", []))
    assert sum(rest.values()) + come_out == counts.rows + more
    return counts.rows


QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICK
@given(
    rows=st.lists(ROW, max_size=12),
    ragged=st.sets(st.integers(0, 11)),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_rows_of_a_csv_are_all_accounted_for(tmp_path, rows, ragged, end):
    """Well-quoted cells, ragged rows and blank lines in between."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "url", "caption"])
    for number, (url, caption) in enumerate(rows):
        cells = [number, url or "", caption or ""]
        writer.writerow([*cells, "more"] if number in ragged else cells)
        out.write(end * (number % 3 == 0))
    (tmp_path / "a.csv").write_text(out.getvalue(), newline="")
    assert accounted(pool(tmp_path / "a.csv", quoted=True)) == len(rows)


@QUICK
@given(lines=st.lists(st.binary(max_size=12), max_size=12))
def test_lines_of_a_tsv_are_all_accounted_for(tmp_path, lines):
    lines = [line.replace(b"\n", b"").replace(b"\r", b"") for line in lines]
    (tmp_path / "a.tsv").write_bytes(b"\n".join([b"url\tcaption", *lines]) + b"\n")
    assert accounted(pool(tmp_path / "a.tsv")) == sum(bool(line) for line in lines)


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELL,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(CELL, inner, max_size=2),
    max_leaves=4,
)


@QUICK
@given(
    lines=st.lists(
        st.one_of(
            st.builds(
                lambda url, text: json.dumps({"url": url, "caption": text}),
                JSON_VALUE,
                JSON_VALUE | st.lists(CELL, max_size=3),
            ),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9),
        ),
        max_size=12,
    )
)
def test_lines_of_json_are_all_accounted_for(tmp_path, lines):
    # "{" first, so that the file is no list
    lines = ["{}", *lines]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), newline="")
    config = pool(tmp_path / "a.jsonl")
    num_rows = 0
    for file in find_files(config):
        for batch in read_batches(file, config):
            come_out = len(batch.columns["url"]) - batch.num_more_captions
            num_rows += come_out + batch.num_broken
    assert num_rows == sum(bool(line.encode().strip()) for line in lines)


@QUICK
@given(
    rows=st.lists(st.tuples(CELL | st.none(), st.none() | st.lists(CELL | st.none()))),
    size=st.integers(1, 5),
)
def test_rows_of_parquet_are_all_accounted_for(tmp_path, rows, size):
    """Captions as lists, with nulls; several row groups."""
    table = pa.table(
        {
            "url": pa.array([url for url, _ in rows], pa.string()),
            "caption": pa.array([texts for _, texts in rows], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=size)
    config = pool(tmp_path / "a.parquet")
    assert accounted(config) == len(rows)


@QUICK
@given(data=st.data())
def test_whatever_quotes_a_csv_has_no_line_is_lost_in_silence(tmp_path, data):
    """Quotes at random places: all rows, or a message with a line."""
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    lines = lines_of(ROWS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = rng.randrange(1, len(lines))
        place = rng.choice([lines[at].find(",") + 1, rng.randrange(len(lines[at]))])
        lines[at] = lines[at][:place] + '"' + lines[at][place:]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    config = pool(tmp_path / "a.csv")
    (file,) = find_files(config)
    try:
        with reading(file):
            batches = list(read_batches(file, config))
    except DataError as error:
        assert "a.csv: line " in str(error)
    else:
        read_rows = sum(len(batch.columns["url"]) for batch in batches if batch.columns)
        assert read_rows + sum(batch.num_broken for batch in batches) == len(ROWS)

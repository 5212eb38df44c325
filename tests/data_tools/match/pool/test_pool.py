import gzip
import http.server
import json
import re
import threading
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.config import PoolConfig, load_job
from data_tools.config.pool import problems
from data_tools.match.pool import (
    RowCounts,
    find_files,
    formats,
    json_rows,
    problems_of,
    read_batches,
    reading,
    usable,
    with_uids,
)
from data_tools.tables.schema import (
    CANONICAL_URL,
    DataError,
    _made_canonical,
    canonical_url,
    make_uid,
)

ROWS = [
    ("http://example.org/1.jpg", "a cat"),
    ("https://example.org/2.jpg", 'a "quoted",\nbroken dog'),
    ("http://example.org/3.jpg", None),
    ("ftp://example.org/4.jpg", "a bird"),
    (None, "a horse"),
    ("HTTP://EXAMPLE.ORG/5.jpg ", "\u732b"),
]
USABLE = [
    ("http://example.org/1.jpg", "a cat"),
    ("https://example.org/2.jpg", 'a "quoted", broken dog'),
    ("HTTP://EXAMPLE.ORG/5.jpg", "\u732b"),
]
FORMATS = ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.json"]
FORMATS += [f"{name}.gz" for name in FORMATS[1:]]


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
    rows = [{"url": url, "caption": caption} for url, caption in ROWS]
    if ".jsonl" in name:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif ".json" in name:
        content = json.dumps(rows, indent=1).encode()
    else:
        content = separated(ROWS, "\t" if ".tsv" in name else ",")
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def read(config, max_caption_chars=10_000, **parts):
    """(columns of all usable rows, counts)."""
    counts = RowCounts()
    columns: dict[str, list] = {}
    for file in find_files(config):
        assert problems_of(file, config) == []
        with reading(file):
            for batch in read_batches(file, config, **parts):
                counts.rows += batch.num_broken
                counts.unreadable += batch.num_broken
                if batch.columns:
                    rows = usable(batch.columns, max_caption_chars)
                    counts.add(rows.counts)
                    for name, values in rows.columns.items():
                        columns.setdefault(name, []).extend(values.to_pylist())
    return columns, counts


def pairs(config, **options):
    columns, _ = read(config, **options)
    return list(zip(columns.get("url", []), columns.get("caption", [])))


def pool(*paths, **values):
    return PoolConfig(enabled=True, paths=[str(path) for path in paths], **values)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    config = pool(write(tmp_path, name))
    assert pairs(config) == USABLE
    assert read(config)[1] == RowCounts(rows=6, null=2, not_http=1)


def test_files_are_found_by_pattern_once_and_in_the_order_of_names(tmp_path):
    for name in ("b.csv", "a.jsonl", "sub/c.parquet", "d[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name)
    config = pool(
        f"{tmp_path}/*.*", f"{tmp_path}/**/*.parquet", f"{tmp_path}/b*", f"{tmp_path}/d[1].csv"
    )
    names = [file.name.rpartition("/")[2] for file in find_files(config)]
    assert names == ["a.jsonl", "b.csv", "d[1].csv", "c.parquet"]
    assert pairs(config) == USABLE * 4


def test_parts_of_a_parquet_file_are_disjoint_and_together_all(tmp_path):
    config = pool(write(tmp_path, "a.parquet"))  # 3 row groups of 2
    for num_parts in (1, 2, 3, 5):
        parts = [pairs(config, part=part, num_parts=num_parts) for part in range(num_parts)]
        assert sum(parts, []) == USABLE
    assert parts.count([]) >= 2


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """As much of RFC 9110's ranges as object stores speak."""

    content: dict[str, bytes] = {}

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        content = self.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2] or len(content)), len(content) - 1) if asked else len(content) - 1
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(content)}"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if with_body:
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    RangeHandler.content = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.jsonl", "a.json.gz"])
def test_files_on_a_web_server(tmp_path, web, name):
    RangeHandler.content[f"/{name}?v=2"] = write(tmp_path, name).read_bytes()
    config = pool(f"{web}/{name}?v=2")
    assert pairs(config) == USABLE
    (file,) = find_files(config)
    assert file.size == len(RangeHandler.content[f"/{name}?v=2"])
    RangeHandler.content[f"/{name}?v=2"] += b"\n"
    assert find_files(config) != [file]
    with pytest.raises(DataError, match="matches no file"):
        find_files(pool(f"{web}/none.csv"))


def test_files_in_any_file_system_that_fsspec_knows(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("a.parquet", "b.tsv.gz"):
        memory.pipe(f"/pool-test/{name}", write(tmp_path, name).read_bytes())
    assert pairs(pool("memory://pool-test/*")) == USABLE * 2
    assert [f.name for f in find_files(pool("memory://pool-test/*.gz"))] == [
        "memory:///pool-test/b.tsv.gz"
    ]
    assert pairs(pool(f"file://{tmp_path}/*.parquet")) == USABLE
    memory.rm("/pool-test", recursive=True)
    with pytest.raises(DataError, match="nosuch://x"):
        find_files(pool("nosuch://x"))


def test_every_problem_of_a_file_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("link,text\nhttp://example.org,x\n")
    pq.write_table(pa.table({"url": ["x"], "alt": ["y"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"href": "x"}\n')
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    (tmp_path / "e.parquet").write_bytes(b"no parquet")
    (tmp_path / "f.csv").write_bytes(b"")
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
    for name in ("e.parquet", "f.csv", "g.csv.gz", "i.json"):
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


def test_a_line_of_json_without_end_is_one_broken_row(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    good = '{"url": "http://example.org/1.jpg", "caption": "cat"}\n'
    (tmp_path / "a.jsonl").write_text(good + '{"url": "' + "x" * 5000 + '"}\n' + good)
    columns, counts = read(pool(f"{tmp_path}/a.jsonl"))
    assert (columns["caption"], counts.unreadable) == (["cat", "cat"], 1)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_file_cut_off_is_an_error_that_names_it(tmp_path, name):
    path = write(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-20])
    config = pool(path)
    (file,) = find_files(config)
    with pytest.raises(DataError, match=name), reading(file):
        list(read_batches(file, config))


@pytest.mark.parametrize("read_bytes", [1, 7, 64, 1 << 20])
def test_a_list_in_a_document_is_read_as_a_stream(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(json_rows, "READ_BYTES", read_bytes)
    rows = [{"url": f"http://x/{n}", "caption": "\u732b ]}," * n, "n": [{}]} for n in range(9)]
    document = {"info": {"a": [1]}, "annotations": rows, "rest": 1}
    (tmp_path / "a.json").write_text(json.dumps(document, ensure_ascii=False))
    with (tmp_path / "a.json").open("rb") as stream:
        assert list(json_rows.list_rows(stream, "annotations")) == rows


def test_batches_are_bounded_in_rows_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BATCH_ROWS", 4)
    monkeypatch.setattr(formats, "JSON_BATCH_ROWS", 4)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        config = pool(write(tmp_path, name))
        (file,) = find_files(config)
        sizes = [len(b.columns["url"]) for b in read_batches(file, config) if b.columns]
        assert max(sizes) <= 4 and sum(sizes) == 6
    monkeypatch.setattr(formats, "BATCH_BYTES", 1)
    assert [len(b.columns["url"]) for b in read_batches(file, config)] == [1] * 6


LAYOUTS = {
    "laion": {
        "URL": ["http://example.org/1.jpg"],
        "TEXT": ["a cat"],
        "WIDTH": [640.0],
        "HEIGHT": [480.0],
        "LICENSE": ["?"],
        "NSFW": ["UNLIKELY"],
    },
    "datacomp": {
        "uid": ["00"],
        "url": ["http://example.org/1.jpg"],
        "text": ["a cat"],
        "original_width": [640],
        "original_height": [480],
    },
    "coyo": {
        "id": [1],
        "url": ["http://example.org/1.jpg"],
        "text": ["a cat"],
        "width": [640],
        "height": [480],
        "nsfw_score_opennsfw2": [0.1],
    },
}


@pytest.mark.parametrize("preset", ["laion", "datacomp", "coyo", "cc3m", "cc12m", "redcaps"])
def test_layouts_of_published_pools(tmp_path, preset):
    url, caption = "http://example.org/1.jpg", "a cat"
    if preset in LAYOUTS:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(LAYOUTS[preset]), path)
    elif preset == "redcaps":
        path = tmp_path / "cats_2017.json"
        row = {
            "image_id": "x",
            "author": "y",
            "url": url,
            "raw_caption": "A CAT",
            "caption": caption,
        }
        path.write_text(json.dumps({"info": {"version": "1.0"}, "annotations": [row]}))
    else:
        path = tmp_path / "a.tsv"
        caption = 'a "cat'  # a quotation mark is text there
        path.write_text("\t".join([caption, url] if preset == "cc3m" else [url, caption]) + "\n")
    (tmp_path / "q.txt").write_text("cat\n")
    job = load_job(
        [
            f"out_dir={tmp_path}/out",
            f"queries.path={tmp_path}/q.txt",
            f"pool={preset}",
            "sources.contact=a@example.org",
            f"sources.pool.paths=[{path}]",
        ]
    )
    columns, _ = read(job.sources.pool)
    assert (columns["url"], columns["caption"]) == ([url], [caption])
    if preset in LAYOUTS:
        assert (columns["width"], columns["height"]) == ([640], [480])
    if preset in ("laion", "coyo"):
        assert columns["mature"] == [False]


def test_pools_of_two_layouts_in_one_job(tmp_path):
    pq.write_table(pa.table({"URL": ["http://x/1"], "TEXT": ["cat"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["http://x/2"], "text": ["dog"]}), tmp_path / "b.parquet")
    config = pool(f"{tmp_path}/*", url_column="URL|url", caption_column="TEXT|text")
    assert pairs(config) == [("http://x/1", "cat"), ("http://x/2", "dog")]


@pytest.mark.parametrize(
    ("values", "mature"),
    [
        (["NSFW", "UNSURE", "UNLIKELY", None], [True, None, False, None]),
        (["0.7", "0.2", "true", "no"], [True, False, True, False]),
        ([0.7, 0.2, None, float("nan")], [True, False, None, None]),
        ([True, False, None, True], [True, False, None, True]),
        ([[1], [2], None, []], [None] * 4),
    ],
)
def test_what_pools_say_of_mature_images(tmp_path, values, mature):
    table = pa.table({"url": ["http://x/1"] * 4, "caption": ["a"] * 4, "m": values})
    pq.write_table(table, tmp_path / "a.parquet")
    columns, _ = read(pool(f"{tmp_path}/a.parquet", mature_column="m"))
    assert columns["mature"] == mature


@pytest.mark.parametrize(
    ("values", "pixels"),
    [
        ([640, 0, -1, None], [640, None, None, None]),
        ([640.0, float("nan"), 1e12, float("inf")], [640, None, None, None]),
        (["640", " 480.0 ", "wide", ""], [640, 480, None, None]),
    ],
)
def test_widths_of_all_kinds(tmp_path, values, pixels):
    table = pa.table({"url": ["http://x/1"] * 4, "caption": ["a"] * 4, "w": values})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(pool(f"{tmp_path}/a.parquet", width_column="w"))[0]["width"] == pixels


def test_text_types_of_parquet(tmp_path):
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ):
        plain = pa.array(["http://x/1", "http://x/2"])
        column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
        pq.write_table(pa.table({"url": column, "caption": column}), tmp_path / "a.parquet")
        assert [url for url, _ in pairs(pool(f"{tmp_path}/a.parquet"))] == plain.to_pylist()


def test_problems_of_the_settings():
    config = PoolConfig(enabled=True, url_column="URL|", storage_options={"client_secret": "x"})
    told = "\n".join(problems(config))
    assert "paths is empty" in told
    assert "url_column = 'URL|'" in told
    assert "client_secret" in told and "environment" in told
    assert problems(replace(config, enabled=False)) == []


URLS = st.one_of(
    st.text("htps:/.?#%@[]&=ab XY\u00e9-_~'\n", max_size=30).map(lambda rest: "http://" + rest),
    st.from_regex(CANONICAL_URL, fullmatch=True),
    st.builds(
        lambda scheme, host, path: f"{scheme}://{host}{path}",
        st.sampled_from(["http", "https", "HTTP"]),
        st.sampled_from(
            ["a.org", "A.org", "a.org:80", "a.org:443", "u@a.org", "\u732b.jp", "[::1]"]
        ),
        st.text("/ab?#%20;=+,'(){}|", max_size=12),
    ),
)


def made_or_none(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return None


@given(URLS)
def test_a_url_taken_for_canonical_is(url):
    assert made_or_none(canonical_url, url) == made_or_none(_made_canonical, url)


@given(st.lists(st.tuples(URLS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1))))
def test_uids_of_a_batch_are_those_of_its_rows(rows):
    columns = {
        name: pa.array(values, pa.string())
        for name, values in (("url", [u for u, _ in rows]), ("caption", [c for _, c in rows]))
    }
    result = with_uids(columns)
    wanted = [made_or_none(make_uid, url, caption) for url, caption in rows]
    assert result.columns["uid"].to_pylist() == [uid for uid in wanted if uid is not None]
    assert result.counts.unusable_urls == wanted.count(None)

"""Where the files of a pool lie: patterns, web servers, any file system."""

import http.server
import re
import threading

import fsspec
import pytest

from data_tools.match.pool import find_files
from data_tools.tables.schema import DataError
from tests.data_tools.match.pool.pool_files import USABLE, pairs, pool, write


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
    assert pairs(pool("memory://pool-test/*", quoted=True)) == USABLE * 2
    assert [f.name for f in find_files(pool("memory://pool-test/*.gz"))] == [
        "memory:///pool-test/b.tsv.gz"
    ]
    assert pairs(pool(f"file://{tmp_path}/*.parquet")) == USABLE
    memory.rm("/pool-test", recursive=True)
    with pytest.raises(DataError, match="nosuch://x"):
        find_files(pool("nosuch://x"))


@pytest.mark.parametrize("pattern", ["spark.parquet", "spark.parquet/", "*.parquet"])
def test_a_folder_that_is_named_as_a_file_is_told_from_a_missing_one(tmp_path, pattern):
    (tmp_path / "spark.parquet").mkdir()
    write(tmp_path / "spark.parquet", "part-0.parquet")
    with pytest.raises(DataError, match=r"no file but a folder: name .*/\*\.parquet'"):
        find_files(pool(f"{tmp_path}/{pattern}"))
    assert len(find_files(pool(f"{tmp_path}/spark.parquet/*.parquet"))) == 1

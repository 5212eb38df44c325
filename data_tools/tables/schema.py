"""What stages hand on to each other: parquet schemas, names of files, and the words of the ledger.

Every stage reads tables and writes tables, and hands on nothing else. A pair of image and caption
keeps its `uid` from the moment it is found until it is a sample in a shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.ground.aside import written_aside


class DataError(RuntimeError):
    """A failure the user can act on: the message names the value and the fix; entry points print it
    and exit 1."""


# One row per distinct query, in the order of the user's list. Two queries are the same when their
# `folded` forms are equal.
QUERIES = pa.schema(
    [
        ("query_id", pa.int32()),
        ("query", pa.string()),
        ("folded", pa.string()),
        ("origin", pa.string()),
    ]
)

# Sources of queries besides the user's own lists; `origin` begins with the name of one.
MADE_QUERIES = ("wordnet", "unigrams", "bigrams", "titles", "composed")


def query_source(origin: str) -> str:
    """The source in a query's `origin`: "wordnet:n02084071" -> "wordnet"; for a user's list, the
    file's name: "list.txt:3" -> "list.txt"."""
    source = origin.split(":")[0]
    return source if source in MADE_QUERIES else origin.rpartition(":")[0] or origin


# One row per (url, caption), however many queries found it: `query_ids` is sorted and
# distinct.
CANDIDATES = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("page_url", pa.string()),
        ("license", pa.string()),
        ("license_url", pa.string()),
        ("attribution", pa.string()),
        ("source", pa.string()),
        ("query_ids", pa.list_(pa.int32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mature", pa.bool_()),
    ]
)

# Candidates that balancing kept, with the probability that each had of being kept.
KEPT = CANDIDATES.append(pa.field("keep_probability", pa.float32()))

# One row per image that the crawl stored, with the place of its bytes: `size` bytes at `offset` of
# the tar `shard`, a path relative to the crawl folder. `sha256` is that of the bytes as the site
# sent them; `width` and `height` are those of the stored image, the original_* ones those before
# it was made smaller.
FETCHED = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
    ]
)

# Fetched rows that passed curation, with the caption as it will be packed. `captions` are all texts
# that came with the same image, that one included; `query_ids` are the queries of all of them.
CURATED = (
    FETCHED.append(pa.field("caption", pa.string()))
    .append(pa.field("captions", pa.list_(pa.string())))
    .append(pa.field("query_ids", pa.list_(pa.int32())))
)

# Pairs that were merged into the pair `main` of the curated table, which shows the same picture.
# `query_ids` are the queries that `main` got from this pair; each is listed for one pair only. A
# pair that adds none has no row.
UNITED = pa.schema(
    [("uid", pa.string()), ("main", pa.string()), ("query_ids", pa.list_(pa.int32()))]
)

# Curated rows that the second balancing kept, with their probability of being kept by both.
BALANCED = CURATED.append(pa.field("keep_probability", pa.float32()))

# What one stage decided about each uid. The ledger has, for each uid, the decision of the last
# stage that made one.
FATES = pa.schema(
    [
        ("uid", pa.string()),
        ("status", pa.string()),
        ("http_status", pa.int32()),
        ("detail", pa.string()),
    ]
)

LEDGER = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("query_ids", pa.list_(pa.int32())),
        ("status", pa.string()),
        ("http_status", pa.int32()),
        ("detail", pa.string()),
    ]
)

FOUND, MATCHED, KEPT_STATUS, FETCHED_STATUS, PACKED = (
    "found",
    "matched",
    "kept",
    "fetched",
    "packed",
)
# These are followed by ":" and a reason: "dropped:balance", "failed:timeout", "failed:http_404".
DROPPED, FAILED, REJECTED = "dropped", "failed", "rejected"
# The fates that a URL has because of its host: it is slow by its own wish, it asked for a pause, or
# its robots.txt can't be read. Another round may bring the picture.
CUT_FATES = ("failed:host_busy", "failed:http_429", "failed:robots_unreachable")


@dataclass(frozen=True)
class DatasetPaths:
    """Where the stages of one data set job put their output; `root` is the job's `out_dir`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.parquet"

    @property
    def search_cursor(self) -> Path:
        return self.root / "search"

    @property
    def crawl(self) -> Path:
        return self.root / "crawl"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def matched(self) -> Path:
        """Folder of the match stage: parquet files of CANDIDATES, with what the pool files gave."""
        return self.root / "tables" / "matched"

    def table(self, name: str) -> Path:
        """`tables/NAME.parquet`: queries, searched, candidates, kept, fetched, united,
        curated, balanced."""
        return self.root / "tables" / f"{name}.parquet"

    def fates(self, stage: str) -> Path:
        return self.root / "tables" / "fates" / f"{stage}.parquet"


# Matches URLs that canonical_url would leave as they are, in the syntax of RE2 (pyarrow) and of re
# alike. Most URLs on the web match, and the match is 10 times faster than parsing.
CANONICAL_URL = (
    r"https?://[a-z0-9.-]+/[A-Za-z0-9/%:@!$&'()*+,;=~._-]*(?:\?[A-Za-z0-9/%:@!$&'()*+,;=~._?-]+)?"
)
_IS_CANONICAL = re.compile(CANONICAL_URL).fullmatch


def canonical_url(url: str) -> str:
    """Bring a URL into the form that enters a uid: lower-case scheme and host, no fragment, no
    default port, percent-encoded path. The query string stays: image CDNs identify the picture by
    it."""
    return url if _IS_CANONICAL(url) else _made_canonical(url)


def _made_canonical(url: str) -> str:
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    try:
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError:
        host = quote(host)
    default_port = {"http": 80, "https": 443}.get(parts.scheme.lower())
    port = parts.port
    if ":" in host:
        host = f"[{host}]"
    netloc = host if port in (None, default_port) else f"{host}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return urlunsplit((parts.scheme.lower(), netloc, path, query, ""))


def make_uid(url: str, caption: str) -> str:
    """Return the key of a sample: 32 hex digits of xxh3-128 over canonical URL, newline,
    caption."""
    return xxhash.xxh3_128_hexdigest(f"{canonical_url(url)}\n{caption}".encode())


def write_table(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write `table` as parquet with exactly `schema`. It is written aside: `path` is whole or
    absent."""
    with written_aside(path) as aside:
        pq.write_table(table.select(schema.names).cast(schema), aside, compression="zstd")


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer for a table that is written batch by batch. It is written aside: `path` is
    whole or absent."""
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd") as writer,
    ):
        yield writer


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a stage's table into memory, with the columns of `schema`. DataError for a missing file
    or column."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist: run the stage that writes it first (python -m "
            f"data_tools.build)"
        )
    table = pq.read_table(path)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {missing}, it has {table.column_names}: delete it and "
            f"run again"
        )
    return table.select(schema.names).cast(schema)

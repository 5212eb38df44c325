"""Six rows, good and bad, in a file of every format; and a pool read as the match stage does."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import PoolConfig
from data_tools.match.pool import Account, find_files, problems_of, read_batches, reading, usable

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
    account = Account()
    columns: dict[str, list] = {}
    for file in find_files(config):
        assert problems_of(file, config) == []
        with reading(file):
            for batch in read_batches(file, config, **parts):
                account.note(batch)
                if batch.columns:
                    rows = usable(batch.columns, max_caption_chars)
                    account.counts.add(rows.counts)
                    for name, values in rows.columns.items():
                        columns.setdefault(name, []).extend(values.to_pylist())
    return columns, account.counts


def pairs(config, **options):
    columns, _ = read(config, **options)
    return list(zip(columns.get("url", []), columns.get("caption", [])))


def pool(*paths, **values):
    return PoolConfig(enabled=True, paths=[str(path) for path in paths], **values)

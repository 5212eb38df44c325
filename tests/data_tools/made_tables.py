"""Rows of the stages' tables for tests, with values that the test does not care about filled in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from data_tools.tables.schema import CANDIDATES, FETCHED, KEPT, DatasetPaths, make_uid, write_table


def candidate(url: str, caption: str, **values: object) -> dict:
    row: dict = {
        "uid": make_uid(url, caption),
        "url": url,
        "caption": caption,
        "page_url": "https://example.org/page",
        "license": "CC0",
        "license_url": "https://creativecommons.org/publicdomain/zero/1.0/",
        "attribution": "A. Painter",
        "source": "test",
        "query_ids": [0],
        "width": 60,
        "height": 40,
        "mature": False,
        "keep_probability": 0.25,
    }
    return {**row, **values}


def fetched(uid: str, **values: object) -> dict:
    row: dict = {
        "uid": uid,
        "shard": "part-00000/images/00000.tar",
        "offset": 512,
        "size": 100,
        "width": 60,
        "height": 40,
        "original_width": 60,
        "original_height": 40,
        "sha256": hashlib.sha256(uid.encode()).hexdigest(),
    }
    return {**row, **values}


def write_rows(out_dir: Path, candidates: list[dict], fetched_rows: list[dict]) -> DatasetPaths:
    """candidates.parquet and kept.parquet of the same rows, and fetched.parquet."""
    paths = DatasetPaths(out_dir)
    rows = pa.Table.from_pylist(candidates, schema=KEPT)
    write_table(rows.select(CANDIDATES.names), paths.table("candidates"), CANDIDATES)
    write_table(rows, paths.table("kept"), KEPT)
    write_table(pa.Table.from_pylist(fetched_rows, schema=FETCHED), paths.table("fetched"), FETCHED)
    return paths

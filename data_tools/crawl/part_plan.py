"""Which rows are crawled in which part: the rows, ordered by the hash of their URL, are cut into
parts.

    crawl/plan.parquet      ROWS; row group N is part N
    crawl/plan.json         what it was made of, and for each part its rows, URLs and a digest

All captions of one URL are neighbours and in one part, which fetches the URL once. Parts are
written and read one at a time, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.ground.aside import write_text_aside, written_aside
from data_tools.ground.lock import HeldError, LockError, take
from data_tools.tables.schema import DataError

BOXES = pa.list_(pa.list_(pa.float32()))
# `url` is in its canonical form. `face_boxes` is null for an image that is in no table of boxes,
# and for all images if no table is given.
ROWS = pa.schema([("uid", pa.string()), ("url", pa.string()), ("face_boxes", BOXES)])
# While another task of the array makes the same plan: 400 million rows take less than two hours.
WAIT_FOR_PLAN_S = 6 * 3600.0


@dataclass(frozen=True)
class PartSize:
    """What plan.json says about one part."""

    rows: int
    urls: int
    digest: str
    """Hash of the part's uids, URLs and boxes."""


@dataclass(frozen=True)
class Plan:
    """The parts of one round of the crawl, and the file that holds their rows."""

    file: Path
    parts: list[PartSize]

    def read(self, index: int) -> pa.Table:
        """The rows of one part, with the schema ROWS."""
        with pq.ParquetFile(self.file) as file:
            return file.read_row_group(index)


def make_plan(
    folder: Path, source: object, samples_per_part: int, rows: Callable[[], Iterable[pa.Table]]
) -> Plan:
    """The plan in `folder` if it was made of the same `source`; else a new one is made.

    `source` is any JSON value that says what the rows depend on; `rows()` gives ROWS tables in
    which equal URLs are neighbours. The tasks of an array call this at the same time: one makes the
    plan, the others wait for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = json.loads(json.dumps({"source": source, "samples_per_part": samples_per_part}))
    with _alone(folder / ".plan.lock"):
        plan = _read_plan(folder, source)
        return plan if plan is not None else _write_plan(folder, source, samples_per_part, rows())


def _read_plan(folder: Path, source: object) -> Plan | None:
    try:
        recorded = json.loads((folder / "plan.json").read_text())
        if recorded["made_of"] == source and (folder / "plan.parquet").exists():
            return Plan(folder / "plan.parquet", [PartSize(**part) for part in recorded["parts"]])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is no plan, or it is damaged: a new one is made
    return None


def _write_plan(
    folder: Path, source: object, samples_per_part: int, tables: Iterable[pa.Table]
) -> Plan:
    for leftover in folder.glob(".plan.*.tmp"):
        leftover.unlink()
    parts = []
    with written_aside(folder / "plan.parquet") as aside:
        with pq.ParquetWriter(aside, ROWS, compression="zstd") as writer:
            for part in cut(tables, samples_per_part):
                writer.write_table(part, row_group_size=part.num_rows)
                num_urls = int(pc.count_distinct(part["url"]).as_py())
                parts.append(PartSize(part.num_rows, num_urls, digest(part)))
        # plan.json says what plan.parquet was made of: the old one must be gone before plan.parquet
        # is replaced, and the new one is written after it.
        (folder / "plan.json").unlink(missing_ok=True)
    record = {"made_of": source, "parts": [asdict(part) for part in parts]}
    write_text_aside(folder / "plan.json", json.dumps(record))
    return Plan(folder / "plan.parquet", parts)


def cut(tables: Iterable[pa.Table], urls_per_part: int) -> Iterator[pa.Table]:
    """Yield parts of `urls_per_part` distinct URLs, whatever the sizes of the tables are; the last
    part may be smaller."""
    waiting: list[pa.Table] = []
    last_url, ordinal, part = None, -1, 0
    for table in tables:
        if table.num_rows == 0:
            continue
        urls = table["url"].combine_chunks()
        is_new = np.ones(table.num_rows, np.int64)
        is_new[1:] = pc.not_equal(urls[1:], urls[:-1]).to_numpy(zero_copy_only=False)
        is_new[0] = urls[0].as_py() != last_url
        ordinals = ordinal + np.cumsum(is_new)
        parts = ordinals // urls_per_part
        starts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), table.num_rows]
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            if int(parts[start]) != part:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, part = [], int(parts[start])
            waiting.append(table.slice(start, stop - start))
        last_url, ordinal = urls[-1].as_py(), int(ordinals[-1])
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def digest(rows: pa.Table) -> str:
    """16 hex digits over the uids, URLs and boxes of a part."""
    seen = hashlib.sha256()
    for name in ("uid", "url"):
        seen.update("\n".join(rows[name].to_pylist()).encode() + b"\0")
    if rows["face_boxes"].null_count < rows.num_rows:
        seen.update(json.dumps(rows["face_boxes"].to_pylist()).encode())
    return seen.hexdigest()[:16]


@contextmanager
def _alone(lock_file: Path) -> Iterator[None]:
    """Hold a lock on `lock_file`, which the system releases if the process dies. Raises DataError
    if another process holds it longer than WAIT_FOR_PLAN_S."""
    try:
        lock = take(lock_file, wait_s=WAIT_FOR_PLAN_S)
    except HeldError as error:
        raise DataError(
            f"another task has been planning the crawl for {WAIT_FOR_PLAN_S / 3600:.0f} hours and "
            f"holds {lock_file} ({error}): end it, and run again"
        ) from None
    except LockError as error:
        raise DataError(str(error)) from error
    with lock:
        yield

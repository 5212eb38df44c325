from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import pack
from data_tools.dataset.manifest import load_manifest
from data_tools.report.ledger import write_ledger
from data_tools.tables.schema import (
    CANDIDATES,
    CURATED,
    FATES,
    LEDGER,
    DataError,
    DatasetPaths,
    read_table,
)
from tests.data_tools.stages import crawled_job, curated_job, make_job


def ledger(paths: DatasetPaths) -> list[dict]:
    rows: list[dict] = read_table(paths.ledger, LEDGER).to_pylist()
    return rows


def test_every_candidate_once_with_its_last_fate(tmp_path):
    paths = curated_job(tmp_path)
    pack.run(make_job(tmp_path), paths)
    assert write_ledger(paths) == 260
    rows = ledger(paths)
    assert pq.read_schema(paths.ledger).equals(LEDGER)
    assert Counter(row["status"] for row in rows) == {
        "packed": 242,
        "dropped:balance": 10,
        "failed:http_404": 7,
        "rejected:image_small": 1,
    }
    candidates = {
        r["uid"]: r for r in read_table(paths.table("candidates"), CANDIDATES).to_pylist()
    }
    assert {row["uid"] for row in rows} == set(candidates) and len(rows) == len(candidates)
    for row in rows:
        for name in ("url", "caption", "source", "query_ids"):
            assert row[name] == candidates[row["uid"]][name]
    assert rows == sorted(rows, key=lambda row: row["uid"])


def test_the_http_status_stays_known_after_later_stages(tmp_path):
    paths = curated_job(tmp_path)
    pack.run(make_job(tmp_path), paths)
    write_ledger(paths)
    codes = {(row["status"], row["http_status"]) for row in ledger(paths)}
    assert codes == {
        ("packed", 200),
        ("rejected:image_small", 200),
        ("failed:http_404", 404),
        ("dropped:balance", None),
    }


def test_numbers_can_be_counted_again(tmp_path):
    """The totals of manifest, curation and crawl, from the ledger alone."""
    paths = curated_job(tmp_path)
    pack.run(make_job(tmp_path), paths)
    write_ledger(paths)
    counts = Counter(row["status"] for row in ledger(paths))
    assert counts["packed"] == load_manifest(paths.manifest).num_samples
    fetched = read_table(paths.fates("crawl"), FATES)["status"].to_pylist().count("fetched")
    rejected = sum(count for status, count in counts.items() if status.startswith("rejected"))
    assert counts["packed"] + rejected == fetched
    assert counts["packed"] == read_table(paths.table("curated"), CURATED).num_rows


def test_a_ledger_of_an_unfinished_job(tmp_path):
    """What stages that have run say; the others have no say."""
    paths = crawled_job(tmp_path)
    write_ledger(paths)
    counts = Counter(row["status"] for row in ledger(paths))
    assert counts == {"fetched": 243, "failed:http_404": 7, "dropped:balance": 10}
    for stage in ("search", "balance", "crawl"):
        paths.fates(stage).unlink()
    write_ledger(paths)
    assert {row["status"] for row in ledger(paths)} == {"found"}


def test_a_folder_with_a_quote_in_its_name(tmp_path):
    paths = crawled_job(tmp_path / "it's mine; --")
    assert write_ledger(paths) == 260


def test_without_candidates_there_is_no_ledger(tmp_path):
    with pytest.raises(DataError, match="run the search stage first"):
        write_ledger(DatasetPaths(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_schema_is_written_as_the_contract_has_it(tmp_path):
    paths = crawled_job(tmp_path)
    write_ledger(paths)
    assert pq.read_schema(paths.ledger).field("query_ids").type == pa.list_(pa.int32())
    assert not list(tmp_path.glob(".ledger*"))

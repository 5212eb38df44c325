"""The tables of the stage, put together from those of its parts: for each row, the fate from the
last round that tried it."""

from __future__ import annotations

import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import CrawlConfig
from data_tools.crawl.cut_hosts import CutHosts
from data_tools.crawl.fetch_error import PASSING
from data_tools.crawl.part import Part
from data_tools.tables.schema import (
    FATES,
    FETCHED,
    FETCHED_STATUS,
    DataError,
    DatasetPaths,
    table_writer,
)


def collect(rounds: list[list[Part]], paths: DatasetPaths, config: CrawlConfig) -> dict[str, int]:
    """Write fetched.parquet and the fates of the stage, part by part, and print which hosts were
    cut; returns the counts. Raises DataError if no image came."""
    counts: Counter[str] = Counter()
    cut = CutHosts()
    retried = recovered = 0
    with table_writer(paths.fates("crawl"), FATES) as fates:
        for number, parts in enumerate(rounds):
            for part in parts:
                decided = part.read("fates", FATES)
                by_status = _counted(decided)
                if number > 0:
                    retried += decided.num_rows
                    recovered += by_status[FETCHED_STATUS]
                if number + 1 < len(rounds):  # the next round tries these again and decides
                    passing = pc.is_in(decided["status"], value_set=pa.array(sorted(PASSING)))
                    decided = decided.filter(pc.invert(passing))
                    by_status = _counted(decided)
                else:
                    cut.add(part.rows(), decided)
                fates.write_table(decided)
                counts += by_status
    if not counts[FETCHED_STATUS]:
        raise _nothing_came(rounds, counts)
    with table_writer(paths.table("fetched"), FETCHED) as fetched:
        for part in (part for parts in rounds for part in parts):
            fetched.write_table(part.read("fetched", FETCHED))
    totals = {
        "kept": sum(counts.values()),
        FETCHED_STATUS: counts[FETCHED_STATUS],
        "failed": _sum(counts, "failed"),
        "rejected": _sum(counts, "rejected"),
    }
    if retried:
        totals |= {"retried": retried, "recovered": recovered}
    if cut.num_urls:
        totals["urls_of_cut_hosts"] = cut.num_urls
        print("\n".join(cut.lines(config)), flush=True)
    return totals


def _counted(fates: pa.Table) -> Counter[str]:
    counted = pc.value_counts(fates["status"])
    return Counter({entry["values"]: entry["counts"] for entry in counted.to_pylist()})


def _sum(counts: Counter[str], kind: str) -> int:
    return sum(count for status, count in counts.items() if status.startswith(kind))


def _nothing_came(rounds: list[list[Part]], counts: Counter[str]) -> DataError:
    """The error to raise when no image came. It deletes the parts first: the next run would take
    them for done."""
    for part in (part for parts in rounds for part in parts):
        shutil.rmtree(part.folder)
    listed = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return DataError(
        f"the crawl brought no image of {sum(counts.values())} URLs: {listed}. {_advice(counts)}"
    )


def _advice(counts: Counter[str]) -> str:
    """What the user can try, judged by the most frequent fate."""
    most = counts.most_common(1)[0][0]
    advice = {
        "rejected:private_address": "A server of your own is fetched from when it is named: "
        "'crawl.allow_private=[host:port]'",
        "rejected:robots": "The sites' robots.txt forbids it: ask another source",
        "rejected:no_face_boxes": "Do the tables of crawl.face_boxes.paths list these URLs?",
        "failed:robots_unreachable": "The sites' robots.txt can't be read: run again later",
        "failed:dns": "Does this machine resolve names and reach the internet?",
        "failed:connect": "Does this machine reach the internet, and do the servers run?",
        "failed:host_busy": "The sites ask for long pauses (Crawl-delay): raise "
        "crawl.max_host_wait_s",
        "failed:http_429": "The sites ask for a pause: run again later, or lower "
        "crawl.requests_per_host_per_s",
        "failed:timeout": "Does this machine reach the internet? Else raise crawl.timeout_s",
    }
    return advice.get(most, "Do the URLs still work? Open some of tables/kept.parquet")

"""The data set's card: report.html, one page that needs no other file and no network.

Queries, captions, addresses and names came from users and from the web: every one is escaped, and
only http and https addresses become links.
"""

from __future__ import annotations

import base64
import html
import os
import sys
import uuid
from collections.abc import Iterable, Sequence

import numpy as np

from data_tools.card_charts import caption_words, pairs_per_query
from data_tools.card_facts import (
    MAX_CAPTION_WORDS,
    TOP_ROWS,
    Facts,
    Sample,
    collect_facts,
    first_samples,
)
from data_tools.config import DatasetJob
from data_tools.ledger import write_ledger
from data_tools.manifest import Manifest, load_manifest
from data_tools.progress import StageProgress
from data_tools.schema import PACKED, DatasetPaths

NUM_PICTURES = 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 66em; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .2em 1.2em .2em 0; text-align: left;
       border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 1em; }
figure { margin: 0; font-size: 12px; overflow-wrap: anywhere; }
figure img { max-width: 100%; height: 9em; object-fit: contain; outline: 1px solid #d8dee4; }
.chart { max-width: 100%; } .source { color: #59636e; }
"""


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write ledger.parquet and report.html."""
    with StageProgress("report", total=3) as progress:
        num_rows = write_ledger(paths)
        progress.advance()
        manifest = load_manifest(paths.manifest)
        facts = collect_facts(paths)
        samples = first_samples(manifest, NUM_PICTURES)
        progress.advance()
        aside = paths.report.with_name(f".{paths.report.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            aside.write_text(page(job, manifest, facts, samples), encoding="utf-8")
            os.replace(aside, paths.report)
        finally:
            aside.unlink(missing_ok=True)
        progress.advance()
    return {"candidates": num_rows, "samples": manifest.num_samples, "pictures": len(samples)}


def page(job: DatasetJob, manifest: Manifest, facts: Facts, samples: Sequence[Sample]) -> str:
    sections = [
        _table(("", ""), _totals(job, manifest, facts)),
        "<h2>What became of each candidate</h2>",
        _table(("fate", "pairs", "share"), _fates(facts)),
        "<h2>Pairs per query</h2>",
        _queries(job, facts),
        f"<h2>Captions</h2><p>{_caption_sentence(facts)}</p>",
        _chart(caption_words(facts.caption_words), "histogram of words per caption"),
        "<h2>Licences, as the sources state them</h2>",
        "<p>Nobody but the source has checked them. The address and the author of each picture are "
        "in its .json.</p>",
        _table(
            ("licence", "address", "pairs"),
            [(name, Link(address), count) for name, address, count in facts.licenses],
        ),
        f"<h2>Sites</h2><p>{_text(facts.num_sites)} in all; the first {TOP_ROWS}.</p>",
        _table(("site", "found", "failed or rejected", "packed"), facts.sites),
        f"<h2>The first {len(samples)} samples</h2><p>Their order is random.</p>",
        f'<div class="pictures">{"".join(_picture(sample) for sample in samples)}</div>',
        "<h2>How it was made</h2>",
        _table(("", ""), _datasheet(job, manifest)),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data set card</title>'
        f"<style>{_STYLE}</style></head><body><h1>Data set card</h1>\n{body}\n</body></html>\n"
    )


class Link(str):
    """An address from outside, to be shown as a link where it is one."""


def _text(value: object) -> str:
    if isinstance(value, Link):
        shown = html.escape(value, quote=True)
        if not value.lower().startswith(("http://", "https://")):
            return shown
        return f'<a href="{shown}" rel="noopener noreferrer nofollow">{shown}</a>'
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(str(value), quote=True)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["<table>"]
    if any(header):
        lines.append("<tr>" + "".join(f"<th>{_text(name)}</th>" for name in header) + "</tr>")
    for row in rows:
        cells = (
            (
                f'<td class="number">{_text(value)}</td>'
                if isinstance(value, int)
                else f"<td>{_text(value)}</td>"
            )
            for value in row
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def _chart(uri: str, described: str) -> str:
    return f'<img class="chart" src="{uri}" alt="{_text(described)}">'


def _totals(job: DatasetJob, manifest: Manifest, facts: Facts) -> list[tuple[str, object]]:
    candidates = sum(count for _, count in facts.fates)
    return [
        ("samples", manifest.num_samples),
        ("shards", len(manifest.shards)),
        ("bytes", manifest.num_bytes),
        ("candidates", candidates),
        ("queries", facts.num_queries),
        ("queries without a candidate", int((facts.found_per_query == 0).sum())),
        ("queries without a sample", int((facts.packed_per_query == 0).sum())),
        (
            f"queries with more than t = {job.balance.max_per_query} candidates",
            int((facts.found_per_query > job.balance.max_per_query).sum()),
        ),
    ]


def _fates(facts: Facts) -> list[tuple[str, int, str]]:
    total = sum(count for _, count in facts.fates)
    return [(status, count, f"{count / total:.1%}") for status, count in facts.fates]


def _queries(job: DatasetJob, facts: Facts) -> str:
    chart = pairs_per_query(
        facts.found_per_query, facts.packed_per_query, job.balance.max_per_query
    )
    return (
        _chart(chart, "pairs per query by rank, found and packed, both axes logarithmic")
        + f"<p>The {len(facts.top_queries)} queries that found most:</p>"
        + _table(("query", "found", PACKED), facts.top_queries)
    )


def _caption_sentence(facts: Facts) -> str:
    counts = facts.caption_words
    cumulative = np.cumsum(counts)
    median = int(np.searchsorted(cumulative, (cumulative[-1] + 1) / 2))
    return (
        f"Half of the captions have {median} words or fewer; {counts[-1]:,} have more than "
        f"{MAX_CAPTION_WORDS}."
    )


def _picture(sample: Sample) -> str:
    encoded = base64.b64encode(sample.image).decode()
    source = sample.source
    by = source.get("attribution") or "author not stated"
    licensed = source.get("license") or "licence not stated"
    address = Link(source.get("page_url") or source.get("url") or "")
    return (
        f'<figure><img src="data:image/jpeg;base64,{encoded}" alt="{_text(sample.caption)}">'
        f"<figcaption>{_text(sample.caption)}"
        f'<div class="source">{_text(by)}, {_text(licensed)}<br>{_text(address)}</div>'
        "</figcaption></figure>\n"
    )


def _datasheet(job: DatasetJob, manifest: Manifest) -> list[tuple[str, object]]:
    sources = []
    if job.sources.commons.enabled:
        sources.append(f"search: {job.sources.commons.endpoint}")
    if job.sources.pool.enabled:
        sources.append("pools: " + ", ".join(job.sources.pool.paths))
    crawl, rules = job.crawl, job.curate
    robots = "obeyed" if crawl.respect_robots_txt else "not asked for"
    return [
        ("sources", "; ".join(sources) or "not stated"),
        ("query list", job.queries.path),
        ("asked for at most", f"{job.search.limit_per_query} candidates a query"),
        ("balance", f"t = {job.balance.max_per_query}, seed {job.balance.seed}"),
        (
            "crawl",
            f"img2dataset behind a guard; contact {job.sources.contact}; robots.txt {robots}",
        ),
        (
            "images",
            f"JPEG of quality {crawl.encode_quality}, {crawl.resize_mode.value} to "
            f"{crawl.image_size} px, never enlarged",
        ),
        (
            "rules",
            f"shorter side >= {rules.min_side} px, aspect ratio <= {rules.max_aspect_ratio:g}, "
            f"caption of {rules.min_caption_chars} to {rules.max_caption_chars} characters, exact "
            f"duplicates {'dropped' if rules.drop_exact_duplicates else 'kept'}",
        ),
        ("order", f"global shuffle, seed {job.pack.seed}"),
        ("fingerprint of the settings", manifest.config_fingerprint),
        ("fingerprint of the samples", manifest.fingerprint),
    ]


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="report"))

"""The report stage: the ledger, and the data set's card: report.html, one page that needs no other
file and no network.

Queries, captions, addresses and names came from users and from the web: every one is escaped
(data_tools/report/page.py), and only http and https addresses become links.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from data_tools.balance import chosen_max_per_query
from data_tools.config import BalanceConfig, CurateConfig, DatasetJob, SourcesConfig
from data_tools.dataset.manifest import Manifest, load_manifest
from data_tools.ground.aside import write_text_aside
from data_tools.report import coverage, sections
from data_tools.report.facts import Facts, Sample, collect_facts, first_samples
from data_tools.report.ledger import write_ledger
from data_tools.report.page import Link, document, jpeg, section, table, text
from data_tools.search import card_facts as server_facts
from data_tools.tables.schema import DatasetPaths
from data_tools.work.progress import StageProgress

NUM_PICTURES = 24


def inputs(job: DatasetJob) -> list[str]:
    """Content of the lists of class names: the stage runs again when one changes."""
    return coverage.inputs(job.report.class_names, Path(job.out_dir) / "eval")


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write ledger.parquet and report.html."""
    with StageProgress("report", total=3) as progress:
        num_rows = write_ledger(paths)
        progress.advance()
        manifest = load_manifest(paths.manifest)
        facts = collect_facts(paths, chosen_max_per_query(job.balance, paths), job.report)
        samples = first_samples(manifest, NUM_PICTURES)
        progress.advance()
        write_text_aside(paths.report, page(job, manifest, facts, samples))
        progress.advance()
    return {"candidates": num_rows, "samples": manifest.num_samples, "pictures": len(samples)}


def page(job: DatasetJob, manifest: Manifest, facts: Facts, samples: Sequence[Sample]) -> str:
    pictures = "".join(_picture(sample) for sample in samples)
    parts = [
        sections.totals(manifest, facts),
        section(
            f"The first {len(samples)} samples",
            "<p>Their order is random.</p>",
            f'<div class="pictures">{pictures}</div>',
        ),
        sections.fates(facts),
        sections.queries(facts),
        sections.captions(facts),
        sections.coverage(facts.coverage),
        sections.licences(facts),
        sections.sites(facts),
        section("How it was made", table(("", ""), _datasheet(job, manifest, facts))),
    ]
    return document("Data set card", parts)


def _picture(sample: Sample) -> str:
    source = sample.source
    by = source.get("attribution") or "author not stated"
    licensed = source.get("license") or "licence not stated"
    address = Link(source.get("page_url") or source.get("url") or "")
    return (
        f"<figure>{jpeg(sample.image, sample.caption)}<figcaption>{text(sample.caption)}"
        f'<div class="source">{text(by)}, {text(licensed)}<br>{text(address)}</div>'
        "</figcaption></figure>\n"
    )


def _datasheet(job: DatasetJob, manifest: Manifest, facts: Facts) -> list[tuple[str, object]]:
    crawl = job.crawl
    robots = "obeyed" if crawl.respect_robots_txt else "not asked for"
    return [
        *_sources(job.sources),
        ("query list", ", ".join(source for source, *_ in facts.queries.by_source)),
        ("asked for at most", f"{job.search.limit_per_query} candidates a query"),
        ("balance", _balance(job.balance, facts.max_per_query)),
        (
            "crawl",
            f"img2dataset behind a guard; contact {job.sources.contact}; robots.txt {robots}",
        ),
        (
            "images",
            f"JPEG of quality {crawl.encode_quality}, {crawl.resize_mode.value} to "
            f"{crawl.image_size} px, never enlarged",
        ),
        ("rules", _rules(job.curate)),
        ("order", f"global shuffle, seed {job.pack.seed}"),
        ("fingerprint of the settings", manifest.config_fingerprint),
        ("fingerprint of the samples", manifest.fingerprint),
    ]


def _sources(sources: SourcesConfig) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("search", line) for line in server_facts(sources)]
    if sources.pool.enabled:
        rows.append(("pools", ", ".join(sources.pool.paths)))
    return rows or [("sources", "not stated")]


def _balance(config: BalanceConfig, max_per_query: int) -> str:
    why = ""
    if config.target_pairs:
        why = f" (for target_pairs = {config.target_pairs:,})"
    elif config.tail_share:
        why = f" (for tail_share = {config.tail_share:g})"
    survival = config.expected_survival
    expected = f", expected survival {survival:g}" if survival < 1 else ""
    return f"t = {max_per_query}{why}{expected}, seed {config.seed}"


def _rules(config: CurateConfig) -> str:
    """Every rule that is on, by the name of its setting."""
    rules = []
    for rule in dataclasses.fields(config):
        value = getattr(config, rule.name)
        if rule.name == "processes" or value in (None, False, "", []):
            continue
        shown = value.value if isinstance(value, Enum) else value
        name = rule.name.replace("_", " ")
        rules.append(name if value is True else f"{name} {shown}")
    return "; ".join(rules)

"""The report stage: ledger.parquet, and report.html, one page that needs no other file and no
network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.balance import chosen_max_per_query
from data_tools.config import DatasetJob
from data_tools.dataset.manifest import Manifest, load_manifest
from data_tools.ground.aside import write_text_aside
from data_tools.report import coverage, sections
from data_tools.report.datasheet import datasheet
from data_tools.report.facts import Facts, Sample, collect_facts, first_samples
from data_tools.report.ledger import write_ledger
from data_tools.report.page import Section, Table, to_html
from data_tools.tables.schema import DatasetPaths
from data_tools.work.progress import StageProgress

NUM_PICTURES = 24


def inputs(job: DatasetJob) -> list[str]:
    """Return hashes of the lists of class names: the stage runs again when one changes."""
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
    """The HTML of the report."""
    return to_html(
        "Data set report",
        [
            sections.totals(manifest, facts),
            sections.pictures(samples),
            sections.fates(facts),
            sections.queries(facts),
            sections.captions(facts),
            *sections.coverage(facts.coverage),
            sections.licences(facts),
            sections.sites(facts),
            *sections.cut_sites(facts),
            Section("How it was made", [Table((), datasheet(job, manifest, facts))]),
        ],
    )

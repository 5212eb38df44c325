"""The sections of the card that tell numbers: each a title, sentences, tables and charts."""

from __future__ import annotations

import numpy as np

from data_tools.dataset.manifest import Manifest
from data_tools.report.captions import CaptionFacts, kind_sentence
from data_tools.report.charts import histogram, pairs_per_query
from data_tools.report.coverage import Coverage
from data_tools.report.facts import MAX_CAPTION_WORDS, TOP_ROWS, Facts
from data_tools.report.page import Link, chart, names, paragraph, section, side, table
from data_tools.tables.schema import DROPPED, FAILED, PACKED, REJECTED

# MetaCLIP (arXiv 2309.16671): 5.6 billion matches in 1.6 billion captions.
METACLIP_CONCEPTS = 3.5


def totals(manifest: Manifest, facts: Facts) -> str:
    queries = facts.queries
    return table(
        ("", ""),
        [
            ("samples", manifest.num_samples),
            ("shards", len(manifest.shards)),
            ("bytes", manifest.num_bytes),
            ("candidates", facts.total()),
            ("queries", queries.num_queries),
            ("queries without a candidate", int((queries.found == 0).sum())),
            ("queries without a sample", int((queries.packed == 0).sum())),
            (
                f"queries with more than t = {facts.max_per_query} candidates",
                int((queries.found > facts.max_per_query).sum()),
            ),
        ],
    )


def fates(facts: Facts) -> str:
    total = facts.total()
    rows = [(status, count, f"{count / total:.1%}") for status, count in facts.fates]
    balanced = facts.total(f"{DROPPED}:rebalance")
    survived = facts.total(PACKED) + balanced
    crawled = survived + facts.total(FAILED, REJECTED)
    told = ""
    if crawled:
        told = paragraph(
            f"Of {crawled:,} pairs that balancing kept, {survived:,} ({survived / crawled:.1%}) "
            f"survived crawl and curation; the second balancing dropped {balanced:,} of them."
        )
    return section("What became of each candidate", told, table(("fate", "pairs", "share"), rows))


def queries(facts: Facts) -> str:
    of = facts.queries
    drawn = chart(
        pairs_per_query(of.found, of.packed, facts.max_per_query),
        "pairs per query by rank, found and packed, both axes logarithmic",
    )
    capped = int((of.found > facts.max_per_query).sum())
    empty = int((of.found == 0).sum())
    most = table(("query", "found", PACKED), of.top)
    above = f"more than t = {facts.max_per_query:,}"
    return section(
        "Queries",
        paragraph(
            f"{capped:,} of {of.num_queries:,} queries found {above} pairs; {empty:,} found none. "
            "A query can end above t: a pair stays for the sake of its rarest query."
        ),
        "<h3>By source</h3>",
        table(("source", "queries", "found nothing", above, "pairs found"), of.by_source),
        paragraph("A pair counts for each query in it."),
        names(f"Found nothing, {len(of.without_pairs)} of {empty:,}:", of.without_pairs),
        side(
            f"<h3>Pairs per query, before and after</h3>{drawn}",
            f"<h3>The {len(of.top)} queries that found most</h3>{most}",
        ),
    )


def captions(facts: Facts) -> str:
    return section(
        "Captions",
        paragraph(_length_sentence(facts.caption_words), kind_sentence(facts.captions)),
        side(
            "<h3>Words per caption</h3>"
            + chart(histogram(facts.caption_words, "words in the caption"), "words per caption"),
            f"<h3>Concepts per caption</h3>{_concepts(facts)}",
        ),
        side(_ngrams(facts.captions), _languages(facts.captions)),
    )


def _length_sentence(counts: np.ndarray) -> str:
    cumulative = np.cumsum(counts)
    median = int(np.searchsorted(cumulative, (cumulative[-1] + 1) / 2))
    return (
        f"Half of the captions have {median} words or fewer; {counts[-1]:,} have more than "
        f"{MAX_CAPTION_WORDS}."
    )


def _concepts(facts: Facts) -> str:
    drawn = chart(
        histogram(facts.concepts, "queries in the caption", first=1), "queries per caption"
    )
    one = int(facts.concepts[1])
    share = one / max(1, int(facts.concepts.sum()))
    return drawn + paragraph(
        f"{facts.mean_concepts:.2f} queries in a packed caption in the mean; {share:.0%} have one "
        f"alone. MetaCLIP's pool has {METACLIP_CONCEPTS} with 500,000 queries; a larger list finds "
        "more."
    )


def _ngrams(of: CaptionFacts) -> str:
    rows = [
        (n, count, distinct, f"{distinct / count:.1%}" if count else "-")
        for n, count, distinct in of.ngrams
    ]
    told = paragraph(f"In {of.num_captions:,} captions: those of the smallest uids, a fair draw.")
    return f"<h3>n-grams</h3>{told}" + table(("n", "n-grams", "distinct", "share"), rows)


def _languages(of: CaptionFacts) -> str:
    rows = [
        (code or "four words or fewer: not told", count, f"{count / of.num_captions:.1%}")
        for code, count in of.languages[:TOP_ROWS]
    ]
    more = len(of.languages) - len(rows)
    told = paragraph(
        f"In the same {of.num_captions:,} captions, by fastText's lid.176."
        + (f" {more} more were told, each of fewer captions." if more else "")
    )
    return f"<h3>Languages</h3>{told}" + table(("language", "captions", "share"), rows)


def coverage(of: list[Coverage]) -> str:
    if not of:
        return ""
    rows = [
        (
            one.name,
            one.num_classes,
            one.covered,
            f"{one.covered / one.num_classes:.1%}",
            one.with_pairs,
        )
        for one in of
    ]
    header = ("set", "class names", "are a query", "share", "with a packed pair")
    missing = [
        names(
            f"{one.name}, {len(one.missing)} of the {one.num_classes - one.covered:,} that are no "
            "query:",
            one.missing,
        )
        for one in of
    ]
    return section(
        "Class names of the evaluation sets",
        paragraph(
            "A name is covered when it is a query, case and width of letters aside. MetaCLIP's "
            "500,000 queries have 703 of ImageNet's 998 names."
        ),
        table(header, rows),
        *missing,
    )


def licences(facts: Facts) -> str:
    return section(
        "Licences, as the sources state them",
        paragraph(
            "Nobody but the source has checked them. The address and the author of each picture "
            "are in its .json."
        ),
        table(
            ("licence", "address", "pairs"),
            [(name, Link(address), count) for name, address, count in facts.licenses],
        ),
    )


def sites(facts: Facts) -> str:
    shown = len(facts.sites)
    return section(
        "Sites",
        paragraph(
            f"{facts.num_sites:,} in all; those with most samples, {shown} of them, are listed."
        ),
        table(("site", "found", "failed or rejected", PACKED), facts.sites),
    )

"""The sections of the report that show numbers and pictures: each a title and blocks of page.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_tools.dataset.manifest import Manifest
from data_tools.report.captions import CaptionFacts, kind_sentence
from data_tools.report.charts import histogram, pairs_per_query
from data_tools.report.coverage import Coverage
from data_tools.report.facts import MAX_CAPTION_WORDS, TOP_ROWS, Facts, Sample
from data_tools.report.page import (
    Block,
    Chart,
    Columns,
    Heading,
    Link,
    Names,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
    jpeg_uri,
)
from data_tools.tables.schema import DROPPED, FAILED, PACKED, REJECTED

# MetaCLIP (arXiv 2309.16671): 5.6 billion matches in 1.6 billion captions.
METACLIP_CONCEPTS = 3.5


def totals(manifest: Manifest, facts: Facts) -> Section:
    queries = facts.queries
    rows = [
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
    ]
    return Section("", [Table((), rows)])


def pictures(samples: Sequence[Sample]) -> Section:
    shown = Pictures([_picture(sample) for sample in samples])
    title = f"The first {len(samples)} samples"
    return Section(title, [Paragraph("Their order is random."), shown])


def _picture(sample: Sample) -> Picture:
    source = sample.source
    return Picture(
        jpeg_uri(sample.image),
        sample.caption,
        author=source.get("attribution") or "author not stated",
        licence=source.get("license") or "licence not stated",
        address=Link(source.get("page_url") or source.get("url") or ""),
    )


def fates(facts: Facts) -> Section:
    total = facts.total()
    rows = [(status, count, f"{count / total:.1%}") for status, count in facts.fates]
    balanced = facts.total(f"{DROPPED}:rebalance")
    survived = facts.total(PACKED) + balanced
    crawled = survived + facts.total(FAILED, REJECTED)
    blocks: list[Block] = []
    if crawled:
        blocks.append(
            Paragraph(
                f"Of {crawled:,} pairs that balancing kept, {survived:,} "
                f"({survived / crawled:.1%}) survived crawl and curation; the second balancing "
                f"dropped {balanced:,} of them."
            )
        )
    blocks.append(Table(("fate", "pairs", "share"), rows))
    return Section("What became of each candidate", blocks)


def queries(facts: Facts) -> Section:
    per_query = facts.queries
    capped = int((per_query.found > facts.max_per_query).sum())
    empty = int((per_query.found == 0).sum())
    above = f"more than t = {facts.max_per_query:,}"
    header = ("source", "queries", "found nothing", above, "pairs found")
    blocks: list[Block] = [
        Paragraph(
            f"{capped:,} of {per_query.num_queries:,} queries found {above} pairs; {empty:,} found "
            "none. A query can end above t: a pair stays for the sake of its rarest query."
        ),
        Heading("By source"),
        Table(header, per_query.by_source),
        Paragraph("A pair counts once for each of its queries."),
        *_names(
            f"Found nothing, {len(per_query.without_pairs)} of {empty:,}:", per_query.without_pairs
        ),
        Columns(
            [
                [
                    Heading("Pairs per query, before and after"),
                    Chart(
                        pairs_per_query(per_query.found, per_query.packed, facts.max_per_query),
                        "pairs per query by rank, found and packed, both axes logarithmic",
                    ),
                ],
                [
                    Heading(f"The {len(per_query.top)} queries that found most"),
                    Table(("query", "found", PACKED), per_query.top),
                ],
            ]
        ),
    ]
    return Section("Queries", blocks)


def _names(label: str, names: Sequence[str]) -> list[Names]:
    """The label with the names; no block where there is no name."""
    return [Names(label, names)] if names else []


def captions(facts: Facts) -> Section:
    sentences = [_length_sentence(facts.caption_words), kind_sentence(facts.captions)]
    words = histogram(facts.caption_words, "words in the caption")
    return Section(
        "Captions",
        [
            Paragraph(" ".join(sentences)),
            Columns(
                [
                    [Heading("Words per caption"), Chart(words, "words per caption")],
                    [Heading("Concepts per caption"), *_concepts(facts)],
                ]
            ),
            Columns([_ngrams(facts.captions), _languages(facts.captions)]),
        ],
    )


def _length_sentence(counts: np.ndarray) -> str:
    cumulative = np.cumsum(counts)
    median = int(np.searchsorted(cumulative, (cumulative[-1] + 1) / 2))
    return (
        f"Half of the captions have {median} words or fewer; {counts[-1]:,} have more than "
        f"{MAX_CAPTION_WORDS}."
    )


def _concepts(facts: Facts) -> list[Block]:
    one = int(facts.concepts[1])
    share = one / max(1, int(facts.concepts.sum()))
    return [
        Chart(histogram(facts.concepts, "queries in the caption", first=1), "queries per caption"),
        Paragraph(
            f"{facts.mean_concepts:.2f} queries in a packed caption in the mean; {share:.0%} have "
            f"one alone. MetaCLIP's pool has {METACLIP_CONCEPTS} with 500,000 queries; a larger "
            "list finds more."
        ),
    ]


def _ngrams(facts: CaptionFacts) -> list[Block]:
    rows = [
        (n, count, distinct, f"{distinct / count:.1%}" if count else "-")
        for n, count, distinct in facts.ngrams
    ]
    return [
        Heading("n-grams"),
        Paragraph(
            f"Counted in the {facts.num_captions:,} captions with the smallest uids, which is a "
            "random sample: uids are hashes."
        ),
        Table(("n", "n-grams", "distinct", "share"), rows),
    ]


def _languages(facts: CaptionFacts) -> list[Block]:
    rows = [
        (code or "unknown: four words or fewer", count, f"{count / facts.num_captions:.1%}")
        for code, count in facts.languages[:TOP_ROWS]
    ]
    more = len(facts.languages) - len(rows)
    rest = f" {more} more languages have fewer captions each." if more else ""
    return [
        Heading("Languages"),
        Paragraph(
            f"Detected in the same {facts.num_captions:,} captions by fastText's lid.176.{rest}"
        ),
        Table(("language", "captions", "share"), rows),
    ]


def coverage(sets: Sequence[Coverage]) -> list[Section]:
    """The section on class names; none where there is no list of class names."""
    if not sets:
        return []
    rows = [
        (
            one.name,
            one.num_classes,
            one.covered,
            f"{one.covered / one.num_classes:.1%}",
            one.with_pairs,
        )
        for one in sets
    ]
    blocks: list[Block] = [
        Paragraph(
            "A name is covered when it is a query, case and width of letters aside. MetaCLIP's "
            "500,000 queries have 703 of ImageNet's 998 names."
        ),
        Table(("set", "class names", "are a query", "share", "with a packed pair"), rows),
    ]
    for one in sets:
        no_query = one.num_classes - one.covered
        label = f"{one.name}, {len(one.missing)} of the {no_query:,} that are no query:"
        blocks += _names(label, one.missing)
    return [Section("Class names of the evaluation sets", blocks)]


def licences(facts: Facts) -> Section:
    rows = [(name, Link(address), count) for name, address, count in facts.licenses]
    return Section(
        "Licences, as the sources state them",
        [
            Paragraph(
                "Nobody but the source has checked them. The address and the author of each "
                "picture are in its .json."
            ),
            Table(("licence", "address", "pairs"), rows),
        ],
    )


def sites(facts: Facts) -> Section:
    shown = len(facts.sites)
    return Section(
        "Sites",
        [
            Paragraph(f"{facts.num_sites:,} sites in all; the {shown} with the most samples:"),
            Table(("site", "found", "failed or rejected", PACKED), facts.sites),
        ],
    )


def cut_sites(facts: Facts) -> list[Section]:
    """The section on hosts that were cut short; none where there is none."""
    if not facts.cut:
        return []
    words = (
        "Addresses that were left out because of their host: it is slow by its own wish "
        "(Crawl-delay), it asked for a pause (HTTP 429), or its robots.txt could not be read. With "
        "crawl.retry_rounds one higher the same command asks for these again, and for no others; "
        "crawl.max_host_wait_s says how long one may wait for its host's turn."
    )
    shown = f"The {len(facts.cut)} with most of them:"
    header = ("site", "fate", "addresses", "for example")
    return [
        Section(
            "Sites that were cut short", [Paragraph(f"{words} {shown}"), Table(header, facts.cut)]
        )
    ]

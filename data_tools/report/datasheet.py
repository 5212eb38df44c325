"""How the data set was made, in words: the last table of the report."""

from __future__ import annotations

from data_tools.config import BalanceConfig, CaptionChoice, CurateConfig, DatasetJob, SourcesConfig
from data_tools.dataset.manifest import Manifest
from data_tools.report.facts import Facts
from data_tools.search import card_facts as server_facts

CHOSEN_CAPTIONS = {
    CaptionChoice.longest: "the longest caption",
    CaptionChoice.shortest: "the shortest caption",
    CaptionChoice.most_queries: "the caption with the most queries",
    CaptionChoice.first: "the caption of the smallest uid",
}


def datasheet(job: DatasetJob, manifest: Manifest, facts: Facts) -> list[tuple[str, object]]:
    """Rows (what, how): sources, queries, balance, crawl, curation rules, order, fingerprints."""
    crawl = job.crawl
    robots = "obeyed" if crawl.respect_robots_txt else "not asked for"
    return [
        *_sources(job.sources),
        ("query list", ", ".join(source for source, *_ in facts.queries.by_source)),
        ("candidates per query", f"at most {job.search.limit_per_query} from each search server"),
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
        ("rules", "; ".join(rules_in_words(job.curate))),
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


def rules_in_words(config: CurateConfig) -> list[str]:
    """A phrase for each curation rule that is on, in the order in which the rules are asked."""
    return [*_caption_rules(config), *_picture_rules(config), *_duplicate_rules(config)]


def _limits(*limits: tuple[float | None, str]) -> list[str]:
    """The phrases of those limits that are set; 0 is a limit, None is off."""
    return [phrase.format(limit) for limit, phrase in limits if limit is not None]


def _caption_rules(config: CurateConfig) -> list[str]:
    rules = _limits(
        (config.min_caption_chars, "caption of at least {:,} characters"),
        (config.max_caption_chars, "caption of at most {:,} characters"),
        (config.min_caption_words, "caption of at least {:,} words"),
        (config.max_caption_words, "caption of at most {:,} words"),
    )
    if config.repair_text:
        rules.insert(0, "mojibake, HTML entities and tags repaired in captions")
    if config.drop_file_names:
        rules.append("no file names as captions")
    if config.drop_boilerplate:
        listed = f" of {config.boilerplate_path}" if config.boilerplate_path else ""
        rules.append(f"no boilerplate captions{listed}")
    if config.unsafe_terms_path:
        rules.append(f"no caption with a term of {config.unsafe_terms_path}")
    if config.languages:
        languages = ", ".join(config.languages)
        rules.append(f"language {languages}, where the caption has more than four words")
    return rules


def _picture_rules(config: CurateConfig) -> list[str]:
    rules = ["nothing that its source flags as mature"] if config.drop_mature else []
    rules += _limits(
        (config.min_side, "shorter side of at least {:,} px"),
        (config.max_aspect_ratio, "aspect ratio of at most {:g}"),
        (config.min_grey_std, "standard deviation of grey levels of at least {:g} of 255"),
    )
    if config.evaluation_sets:
        rules.append(
            f"no picture within {config.max_contamination_bits} of 64 bits of a perceptual hash of "
            f"one in {', '.join(config.evaluation_sets)}"
        )
    return rules


def _duplicate_rules(config: CurateConfig) -> list[str]:
    rules = []
    if config.drop_exact_duplicates:
        rules.append("one sample for pictures of equal bytes")
    if config.near_duplicate_bits is not None:
        rules.append(
            f"one sample for pictures within {config.near_duplicate_bits} of 64 bits of a "
            f"perceptual hash and {config.near_duplicate_colour} of 255 in each mean colour"
        )
    if rules:
        rules.append(
            f"of such pictures {CHOSEN_CAPTIONS[config.caption_choice]}, and at most "
            f"{config.max_captions:,} captions in all"
        )
    rules += [f"at least {c.min_score:g} by {c.target}" for c in config.classifiers]
    return rules

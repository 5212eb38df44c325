from __future__ import annotations

import base64
import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import pack, report
from data_tools.config import DatasetJob
from data_tools.dataset.manifest import ManifestError, load_manifest
from data_tools.report import facts, sections
from data_tools.report.captions import caption_facts, kind_sentence
from data_tools.report.facts import collect_facts
from data_tools.report.page import Link, environment, to_html
from data_tools.tables.schema import (
    BALANCED,
    LEDGER,
    QUERIES,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)
from data_tools.tables.scratch import scratch_database
from tests.data_tools.crawl import pictures
from tests.data_tools.stages import curated_job, make_job


class Page(HTMLParser):
    """Tags with their attributes; by the heading above them tables, as lists of rows of text, and
    paragraphs; and the text of figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.paragraphs: dict[str, str] = {"": ""}
        self.heading = ""
        self.figures: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self._inside.append(tag)
        if tag in ("h2", "h3"):
            self.heading = ""
        elif tag == "table":
            assert self.heading not in self.tables, "two tables below one heading"
            self.tables[self.heading] = []
        elif tag == "tr":
            self.tables[self.heading].append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1].append("")
        elif tag == "figure":
            self.figures.append("")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data):
        if {"h2", "h3"} & set(self._inside):
            self.heading += data
            self.paragraphs.setdefault(self.heading, "")
        elif {"td", "th"} & set(self._inside):
            self.tables[self.heading][-1][-1] += data
        elif "p" in self._inside:
            self.paragraphs[self.heading] += data + "\n"
        if "figure" in self._inside:
            self.figures[-1] += data


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("report")
    made = curated_job(root)
    _queries_of_two_sources(made)
    _class_names(root)
    pack.run(make_job(root), made)
    counts = report.run(job_with_class_names(root), made)
    assert counts == {"candidates": 260, "samples": 242, "pictures": 24}
    return made


def _queries_of_two_sources(paths: DatasetPaths) -> None:
    rows = read_table(paths.table("queries"), QUERIES).to_pylist()
    for row in rows:
        row["origin"] = "wordnet:n1" if row["query_id"] % 2 else f"mine.txt:{row['query_id']}"
    write_table(pa.Table.from_pylist(rows, QUERIES), paths.table("queries"), QUERIES)


def _class_names(root: Path) -> None:
    (root / "eval" / "demo_set").mkdir(parents=True)
    text = "Query <3> & co\n<b>wombat</b>\n"
    (root / "eval" / "demo_set" / "classnames.txt").write_text(text)
    (root / "names.txt").write_text(
        "QUERY_<4>_& co\n\nquery <11> & co\nquery  <4> & co\ngnu & co\n"
    )


def job_with_class_names(root: Path) -> DatasetJob:
    job = make_job(root)
    job.report.class_names = [str(root / "names.txt")]
    return job


@pytest.fixture(scope="module")
def page(paths) -> Page:
    return Page(paths.report.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(paths, page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "svg", "b"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
        if tag == "a":
            assert attributes["href"].startswith(("http://", "https://"))
    assert "@import" not in paths.report.read_text() and "url(" not in paths.report.read_text()


def test_what_came_from_the_web_is_shown_as_text(page):
    assert any("\u00e9\u732b" in figure for figure in page.figures)
    assert all("<script>alert(" in figure for figure in page.figures)
    queries = {row[0] for table in page.tables.values() for row in table}
    assert "query <3> & co" in queries


def text(value: object) -> str:
    """A cell of a table as HTML."""
    return str(environment().get_template("blocks.html.j2").module.value(value))


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", " javascript:x", "file:///etc/passwd"]
)
def test_only_web_addresses_become_links(address):
    assert "<a" not in text(Link(address))


def test_an_address_can_not_break_out_of_its_link():
    shown = text(Link("https://e.org/\"onclick='x'><script>"))
    assert shown.count('"') == 4 and "<script>" not in shown and "'" not in shown


def number(shown: str) -> int:
    return int(shown.replace(",", ""))


def test_every_number_can_be_counted_again_from_the_ledger(paths, page):
    ledger = read_table(paths.ledger, LEDGER).to_pylist()
    totals = {row[0]: number(row[1]) for row in page.tables[""]}
    manifest = load_manifest(paths.manifest)
    assert totals["samples"] == sum(row["status"] == "packed" for row in ledger) == 242
    assert totals["candidates"] == len(ledger) == 260
    assert totals["bytes"] == manifest.num_bytes and totals["shards"] == 3
    found = {q: sum(q in row["query_ids"] for row in ledger) for q in range(12)}
    assert totals["queries"] == 12
    empty = sum(count == 0 for count in found.values())
    capped = sum(count > 50 for count in found.values())
    assert totals["queries without a candidate"] == empty == 1
    assert totals["queries with more than t = 50 candidates"] == capped == 1
    told = page.paragraphs["Queries"]
    assert told.startswith("1 of 12 queries found more than t = 50 pairs; 1 found none.")
    fates = {row[0]: number(row[1]) for row in page.tables["What became of each candidate"][1:]}
    assert fates == {
        status: sum(row["status"] == status for row in ledger)
        for status in {row["status"] for row in ledger}
    }
    top = page.tables["The 12 queries that found most"][1:]
    top_counts = {row[0]: (number(row[1]), number(row[2])) for row in top}
    for query_id, count in found.items():
        packed = sum(r["status"] == "packed" and query_id in r["query_ids"] for r in ledger)
        assert top_counts[f"query <{query_id}> & co"] == (count, packed)


def test_a_sample_counts_for_the_queries_of_all_its_pairs(tmp_path):
    """Query 11 found nothing by itself; a pair that was merged brought it to one sample."""
    paths, job = curated_job(tmp_path, num_kept=60), make_job(tmp_path)
    rows = read_table(paths.table("balanced"), BALANCED).to_pylist()
    rows[7]["query_ids"].append(11)
    write_table(pa.Table.from_pylist(rows, BALANCED), paths.table("balanced"), BALANCED)
    pack.run(job, paths)
    report.run(job, paths)
    facts = collect_facts(paths, 50, job.report)
    assert (facts.queries.found[11], facts.queries.packed[11]) == (0, 1)
    lengths = [len(row["query_ids"]) for row in rows]
    assert facts.mean_concepts == sum(lengths) / len(lengths)
    assert dict(_packed_queries(paths)) == {row["uid"]: row["query_ids"] for row in rows}


def _packed_queries(paths: DatasetPaths) -> list[tuple[str, list[int]]]:
    found = []
    for tar in paths.shards.glob("*.tar"):
        with tarfile.open(tar) as archive:
            for name in archive.getnames():
                if name.endswith(".json"):
                    content = json.load(archive.extractfile(name))  # type: ignore[arg-type]
                    found.append((name[:-5], content["query_ids"]))
    return found


def test_survival_is_told_from_the_fates(page):
    """250 kept, 7 dead, 1 rejected."""
    told = page.paragraphs["What became of each candidate"]
    assert "Of 250 pairs that balancing kept, 242 (96.8%) survived" in told
    assert "the second balancing dropped 0 of them" in told


def test_queries_by_source(paths, page):
    """Half of the queries are of a WordNet, with query 11, which found nothing; query 10 is
    capped."""
    ledger = read_table(paths.ledger, LEDGER).to_pylist()
    rows = {row[0]: [number(cell) for cell in row[1:]] for row in page.tables["By source"][1:]}
    assert list(rows) == ["mine.txt", "wordnet"]
    for source, parity in (("mine.txt", 0), ("wordnet", 1)):
        found = sum(sum(q % 2 == parity for q in row["query_ids"]) for row in ledger)
        assert rows[source][0] == 6 and rows[source][3] == found
    assert [rows[name][1:3] for name in ("mine.txt", "wordnet")] == [[0, 1], [1, 0]]
    assert "Found nothing, 1 of 1: query <11> & co" in page.paragraphs["By source"]


def test_concepts_per_caption(paths, page):
    packed = [r for r in read_table(paths.ledger, LEDGER).to_pylist() if r["status"] == "packed"]
    lengths = [len(row["query_ids"]) for row in packed]
    told = page.paragraphs["Concepts per caption"]
    assert f"{sum(lengths) / len(lengths):.2f} queries in a packed caption" in told
    assert f"{lengths.count(1) / len(lengths):.0%} have one alone" in told


def test_words_and_languages(paths, page):
    captions = read_table(paths.table("balanced"), BALANCED)["caption"].to_pylist()
    facts = caption_facts(captions)
    rows = [[number(cell) for cell in row[:3]] for row in page.tables["n-grams"][1:]]
    assert rows == [list(row) for row in facts.ngrams] and rows[0][1] > 242
    languages = [number(row[1]) for row in page.tables["Languages"][1:]]
    assert languages == [count for _, count in facts.languages] and sum(languages) == 242
    assert kind_sentence(facts) in page.paragraphs["Captions"]
    lengths = sorted(len(caption.split(" ")) for caption in captions)
    assert f"captions have {lengths[121]} words or fewer; 0 have" in page.paragraphs["Captions"]


def test_languages_and_ngrams_are_of_a_sample(paths):
    job = make_job(paths.root)
    job.report.caption_sample = 10
    facts = collect_facts(paths, 50, job.report)
    table = read_table(paths.table("balanced"), BALANCED).sort_by("uid").slice(0, 10)
    assert facts.captions == caption_facts(table["caption"].to_pylist())


def test_class_names_that_the_queries_cover(paths, page):
    """Of mine.txt's names one is a query in other letters, one found nothing, one is unknown."""
    rows = page.tables["Class names of the evaluation sets"]
    assert rows == [
        ["set", "class names", "are a query", "share", "with a packed pair"],
        ["demo_set", "2", "1", "50.0%", "1"],
        ["names", "3", "2", "66.7%", "1"],
    ]
    told = page.paragraphs["Class names of the evaluation sets"]
    assert "demo_set, 1 of the 1 that are no query: <b>wombat</b>" in told
    assert "names, 1 of the 1 that are no query: gnu & co" in told


def test_licences_and_sites(page):
    licences = page.tables["Licences, as the sources state them"][1:]
    counts = {row[0]: number(row[2]) for row in licences}
    assert set(counts) == {"CC0", "CC BY 4.0", "not stated"} and sum(counts.values()) == 242
    sites = {row[0]: [number(cell) for cell in row[1:]] for row in page.tables["Sites"][1:]}
    assert set(sites) == {f"site{n}.example" for n in range(3)}
    assert [sum(column) for column in zip(*sites.values(), strict=True)] == [260, 8, 242]


def test_hosts_that_were_cut_are_named_with_their_addresses(paths, page, tmp_path):
    assert "Sites that were cut short" not in page.tables
    rows = read_table(paths.ledger, LEDGER).to_pylist()
    lost = [row for row in rows if row["status"].startswith("failed")][:5]
    why = "it is asked once in 40 s (Crawl-delay)"
    for row, name in zip(lost, ("a", "b", "b", "b", "b"), strict=False):
        row["url"] = f"https://{name}.example/{row['uid']}.jpg"
        row["status"], row["detail"] = "failed:host_busy", why
    lost[-1]["url"] = lost[-2]["url"]
    table = pa.Table.from_pylist(rows, LEDGER)
    with scratch_database(tmp_path / "db") as database:
        database.register("ledger", table)
        found = database.execute(facts._CUT).fetchall()
    assert found == [
        ("b.example", "failed:host_busy", len(lost) - 2, why),
        ("a.example", "failed:host_busy", 1, why),
    ]
    (section,) = sections.cut_sites(SimpleNamespace(cut=found))  # type: ignore[arg-type]
    shown = to_html("x", [section])
    assert "b.example" in shown and "crawl.max_host_wait_s" in shown and why in shown


def test_24_pictures_as_they_lie_in_the_shards(paths, page):
    manifest = load_manifest(paths.manifest)
    first = pq.read_table(manifest.index_path(manifest.shards[0])).slice(0, 24).to_pylist()
    shown = [
        base64.b64decode((attributes["src"] or "").split(",")[1])
        for tag, attributes in page.tags
        if tag == "img" and (attributes["src"] or "").startswith("data:image/jpeg")
    ]
    content = manifest.shard_path(manifest.shards[0]).read_bytes()
    assert len(page.figures) == 24
    assert shown == [
        content[r["image_offset"] : r["image_offset"] + r["image_size"]] for r in first
    ]
    assert all(pictures.decode(image).ndim == 3 for image in shown)
    assert "Painter" in page.figures[0] and "https://example.org/page" in page.figures[0]


def test_charts_are_there_and_name_no_query(page):
    charts = [a for tag, a in page.tags if tag == "img" and "svg" in (a["src"] or "")[:20]]
    assert len(charts) == 3
    for chart in charts:
        svg = base64.b64decode((chart["src"] or "").split(",")[1]).decode()
        assert re.search(r"<svg ", svg) and "query &lt;" not in svg


def test_settings_are_told(paths, page):
    made = {row[0]: row[1] for row in page.tables["How it was made"]}
    manifest = load_manifest(paths.manifest)
    assert made["balance"] == "t = 50, seed 0"
    assert made["fingerprint of the settings"] == manifest.config_fingerprint
    assert made["fingerprint of the samples"] == manifest.fingerprint


def test_the_same_data_set_gives_the_same_report(paths):
    before = paths.report.read_bytes()
    report.run(job_with_class_names(paths.root), paths)
    assert paths.report.read_bytes() == before
    assert not list(paths.root.glob(".report*"))


def test_a_data_set_smaller_than_the_picture_table(tmp_path):
    made = curated_job(tmp_path, num_kept=6, num_dead=2)
    pack.run(make_job(tmp_path), made)
    assert report.run(make_job(tmp_path), made)["pictures"] == 3
    assert len(Page(made.report.read_text(encoding="utf-8")).figures) == 3


def test_without_a_manifest_there_is_no_report(tmp_path):
    made = curated_job(tmp_path)
    with pytest.raises(ManifestError, match="no manifest"):
        report.run(make_job(tmp_path), made)
    assert not made.report.exists()
    assert isinstance(read_table(made.ledger, LEDGER), pa.Table), (
        "the ledger is written all the same"
    )


def test_class_names_that_are_not_there_are_named(tmp_path):
    made = curated_job(tmp_path)
    pack.run(make_job(tmp_path), made)
    job = make_job(tmp_path)
    job.report.class_names = [str(tmp_path / "nowhere")]
    with pytest.raises(DataError, match="nowhere is neither a file nor a folder with classnames"):
        report.run(job, made)
    assert not made.report.exists() and report.inputs(job) == []


def test_other_class_names_make_another_report(tmp_path):
    job = make_job(tmp_path)
    job.report.class_names = [str(tmp_path / "names.txt")]
    seen = [report.inputs(job)]
    for content in ("dog\n", "cat\n"):
        (tmp_path / "names.txt").write_text(content)
        seen.append(report.inputs(job))
    assert seen[0] == [] and len(seen[1]) == len(seen[2]) == 1 and seen[1] != seen[2]


def test_the_rules_that_are_on_are_told(page):
    rules = dict(page.tables["How it was made"])["rules"]
    assert rules == (
        "caption of at least 2 characters; caption of at most 1,000 characters; no file names as "
        "captions; no boilerplate captions; nothing that its source flags as mature; shorter side "
        "of at least 32 px; aspect ratio of at most 3; standard deviation of grey levels of at "
        "least 2 of 255; one sample for pictures of equal bytes; of such pictures the longest "
        "caption, and at most 20 captions in all"
    )

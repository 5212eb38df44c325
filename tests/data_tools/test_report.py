from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import pack, report
from data_tools.manifest import ManifestError, load_manifest
from data_tools.report import Link, _text
from data_tools.schema import LEDGER, DatasetPaths, read_table
from tests.data_tools.crawl import pictures
from tests.data_tools.stages import curated_job, make_job


class Page(HTMLParser):
    """Tags with their attributes, tables as lists of rows of text, and the text of figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.figures: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "figure":
            self.figures.append("")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data):
        if {"td", "th"} & set(self._inside):
            self.tables[-1][-1][-1] += data
        if "figure" in self._inside:
            self.figures[-1] += data


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> DatasetPaths:
    root = tmp_path_factory.mktemp("report")
    made = curated_job(root)
    pack.run(make_job(root), made)
    counts = report.run(make_job(root), made)
    assert counts == {"candidates": 260, "samples": 242, "pictures": 24}
    return made


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
    assert any("<b>\u00e9\u732b</b>" in figure for figure in page.figures)
    assert all("<script>alert(" in figure for figure in page.figures)
    queries = {row[0] for table in page.tables for row in table}
    assert "query <3> & co" in queries


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", " javascript:x", "file:///etc/passwd"]
)
def test_only_web_addresses_become_links(address):
    assert "<a" not in _text(Link(address))


def test_an_address_can_not_break_out_of_its_link():
    shown = _text(Link("https://e.org/\"onclick='x'><script>"))
    assert shown.count('"') == 4 and "<script>" not in shown and "'" not in shown


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_every_number_can_be_counted_again_from_the_ledger(paths, page):
    ledger = read_table(paths.ledger, LEDGER).to_pylist()
    totals = {row[0]: number(row[1]) for row in page.tables[0]}
    manifest = load_manifest(paths.manifest)
    assert totals["samples"] == sum(row["status"] == "packed" for row in ledger) == 242
    assert totals["candidates"] == len(ledger) == 260
    assert totals["bytes"] == manifest.num_bytes and totals["shards"] == 3
    found = {q: sum(q in row["query_ids"] for row in ledger) for q in range(12)}
    assert totals["queries"] == 12
    assert totals["queries without a candidate"] == sum(count == 0 for count in found.values()) == 1
    assert (
        totals["queries with more than t = 50 candidates"]
        == sum(n > 50 for n in found.values())
        == 1
    )
    fates = {row[0]: number(row[1]) for row in page.tables[1][1:]}
    assert fates == {
        status: sum(row["status"] == status for row in ledger)
        for status in {row["status"] for row in ledger}
    }
    top = {row[0]: (number(row[1]), number(row[2])) for row in page.tables[2][1:]}
    for query_id, count in found.items():
        packed = sum(r["status"] == "packed" and query_id in r["query_ids"] for r in ledger)
        assert top[f"query <{query_id}> & co"] == (count, packed)


def test_licences_and_sites(page):
    licences = {row[0]: number(row[2]) for row in page.tables[3][1:]}
    assert set(licences) == {"CC0", "CC BY 4.0", "not stated"} and sum(licences.values()) == 242
    sites = {row[0]: [number(cell) for cell in row[1:]] for row in page.tables[4][1:]}
    assert set(sites) == {f"site{n}.example" for n in range(3)}
    assert [sum(column) for column in zip(*sites.values(), strict=True)] == [260, 8, 242]


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
    assert len(charts) == 2
    for chart in charts:
        svg = base64.b64decode((chart["src"] or "").split(",")[1]).decode()
        assert re.search(r"<svg ", svg) and "query &lt;" not in svg


def test_settings_are_told(paths, page):
    made = {row[0]: row[1] for row in page.tables[5]}
    manifest = load_manifest(paths.manifest)
    assert made["balance"] == "t = 50, seed 0"
    assert made["fingerprint of the settings"] == manifest.config_fingerprint
    assert made["fingerprint of the samples"] == manifest.fingerprint


def test_the_same_data_set_gives_the_same_card(paths):
    before = paths.report.read_bytes()
    report.run(make_job(paths.root), paths)
    assert paths.report.read_bytes() == before
    assert not list(paths.root.glob(".report*"))


def test_a_data_set_smaller_than_the_picture_table(tmp_path):
    made = curated_job(tmp_path, num_kept=6, num_dead=2)
    pack.run(make_job(tmp_path), made)
    assert report.run(make_job(tmp_path), made)["pictures"] == 3
    assert len(Page(made.report.read_text(encoding="utf-8")).figures) == 3


def test_without_a_manifest_there_is_no_card(tmp_path):
    made = curated_job(tmp_path)
    with pytest.raises(ManifestError, match="no manifest"):
        report.run(make_job(tmp_path), made)
    assert not made.report.exists()
    assert isinstance(
        read_table(made.ledger, LEDGER), pa.Table
    ), "the ledger is written all the same"

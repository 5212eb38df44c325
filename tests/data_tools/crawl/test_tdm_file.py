"""/.well-known/tdmrep.json: rules as sites write them, and what makes no rule."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from data_tools.crawl.tdm_file import MAX_LOCATION_CHARS, PATH, Rule, comparable, parse
from tests.data_tools.crawl.hostile_server import hostile_site
from tests.data_tools.crawl.jobs import settings
from tests.data_tools.crawl.test_guard import Asked, GuardProcess


def rule(location: object, reserved: object = 1) -> list[Rule]:
    return parse(json.dumps([{"location": location, "tdm-reservation": reserved}]).encode())


@pytest.mark.parametrize(
    ("location", "path", "matched"),
    [
        ("/", "/a/b.jpg", True),
        ("*", "/a/b.jpg", True),
        ("/a", "/a/b.jpg", True),
        ("/a", "/ab.jpg", True),
        ("a/", "/a/b.jpg", True),
        ("/b", "/a/b.jpg", False),
        ("/A/", "/a/b.jpg", False),
        ("/*.jpg", "/a/b.jpg?size=2", True),
        ("/*.jpg$", "/a/b.jpg?size=2", False),
        ("/*.jpg$", "/a/b.jpg", True),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/a*b*c", "/a-b-c-d", True),
        ("/a*c*b", "/a-b-c-d", False),
        ("/ab*b$", "/ab", False),
        ("/ab*b$", "/abb", True),
        ("/*?size=", "/a/b.jpg?size=2", True),
        ("https://example.org/a/", "/a/b.jpg", True),
        ("https://example.org", "/a/b.jpg", True),
        ("/%7Ejoe/", "/~joe/b.jpg", True),
        ("/~joe/", "/%7ejoe/b.jpg", True),
        ("/foo-%24", "/foo-%24", True),
        ("/a%2fb", "/a%2Fb", True),
        ("/a%2Fb", "/a/b", False),
        ("/caf\u00e9/", "/caf%C3%A9/b.jpg", True),
    ],
)
def test_locations(location, path, matched):
    (found,) = rule(location)
    assert found.matches(comparable(URL(path, encoded=True).raw_path_qs)) == matched


@pytest.mark.parametrize(
    ("value", "reserved"),
    [(1, True), ("1", True), (True, True), (0, False), ("0", False), (None, False), ([1], False)],
)
def test_values(value, reserved):
    assert [one.reserved for one in rule("/", value)] == [reserved]


def test_a_rule_without_brackets_counts():
    assert parse(b'\xef\xbb\xbf{"location": "/", "tdm-reservation": 1}')[0].reserved


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><title>not found</title>",
        b"[" * 200_000,
        b"9" * 500_000,
        b"\xff\xfe",
        b"[]",
        b'["/", 1, null, {"location": [7]}, {"location": " "}, {"tdm-reservation": 1}]',
    ],
)
def test_what_is_no_rule(content):
    assert parse(content) == []


def test_locations_are_read_up_to_a_length():
    rows = [{"location": "/" + "a*" * 512, "tdm-reservation": 1}] * 500
    assert len(parse(json.dumps(rows).encode())) == MAX_LOCATION_CHARS // 1025


@given(st.text(alphabet="/*$%4aA~\u00e9\ud800?", max_size=20), st.text(max_size=30))
def test_any_location_and_any_path_get_an_answer(location, path):
    for one in rule(location):
        assert one.matches(comparable("/" + path)) in (True, False)


PARTS = [
    {"location": "/n/1.jpg", "tdm-reservation": 0},
    {"location": "/n/", "tdm-reservation": 1, "tdm-policy": "https://e.org/policy"},
]


@pytest.mark.parametrize("respected", [True, False])
def test_the_first_rule_that_matches_counts_and_the_header_after_it(tmp_path, respected):
    with hostile_site(tdm_file=json.dumps(PARTS)) as site:
        paths = ["/n/1.jpg", "/n/2.jpg", "/ok.jpg", "/tdm.jpg"]
        changes = {"allow_private": [site.host], "respect_tdm_reservation": respected}
        with GuardProcess(settings(**changes)) as guard:
            asked = Asked(guard, [site.url(path) for path in paths], tmp_path)
        fates = [asked.fates[site.url(path)] for path in paths]
        reserved = "rejected:tdm_reservation" if respected else "fetched"
        assert [fate.status for fate in fates] == ["fetched", reserved, "fetched", reserved]
        assert site.requests[PATH] == respected, "asked once for all its addresses"
        assert site.requests["/n/2.jpg"] == (not respected)
        if respected:
            assert fates[1].detail == f"{PATH} of 127.0.0.1 reserves /n/2.jpg https://e.org/policy"


def test_a_redirect_leads_to_no_reserved_address(tmp_path):
    text = json.dumps({"location": "/", "tdm-reservation": 1})
    with hostile_site(tdm_file=text) as reserved, hostile_site() as site:
        site.redirect_to = reserved.url("/ok.jpg")
        with GuardProcess(settings(allow_private=[site.host, reserved.host])) as guard:
            asked = Asked(guard, [site.url("/redirect")], tmp_path)
        assert asked.fates[site.url("/redirect")].status == "rejected:tdm_reservation"
        assert reserved.requests["/ok.jpg"] == 0

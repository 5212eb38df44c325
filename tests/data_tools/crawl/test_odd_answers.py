"""The guard takes every picture that bare img2dataset takes, unless there is a reason that is its
own: real answers of a real server, asked for by both."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.crawl.answer import looks_like_text
from data_tools.crawl.child_processes import GuardProcess
from data_tools.crawl.lenient import _Lines
from data_tools.crawl.verify import GuardFate
from tests.data_tools.crawl.jobs import settings
from tests.data_tools.crawl.odd_answers import (
    FETCHED,
    NO_ROBOTS,
    OURS,
    PICTURE,
    REFUSED,
    ROBOTS,
    UNREACHABLE,
    ok,
    to,
)
from tests.data_tools.crawl.raw_server import raw_site
from tests.data_tools.crawl.test_guard import Asked

ROWS = [(kind, name) for kind, rows in FETCHED.items() for name in rows]
BARE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
AIMS = {"/t/%E9t%E9.jpg", "/t/%C3%BCber.jpg", "/t/a%20b%20%20c.jpg", "/t/a.jpg"}


def bare(url: str) -> bytes | None:
    """What img2dataset 1.47 gets, which asks by urllib and decodes what comes; None: nothing."""
    try:
        with BARE.open(urllib.request.Request(url), timeout=10) as response:
            return bytes(response.read())
    except Exception:
        return None


@dataclass
class Table:
    fates: dict[str, GuardFate]
    pictures: dict[str, bytes]
    """What img2dataset gets from the guard."""
    bare: dict[str, bytes | None]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    answers = {name: answer for rows in FETCHED.values() for name, answer in rows.items()}
    answers |= {name: answer for name, (answer, _) in REFUSED.items()}
    paths = {f"/{number}": answer for number, answer in enumerate(answers.values())}
    paths |= {f"/hop/{n}": to(f"/hop/{n - 1}".encode()) for n in range(1, 11)}
    paths |= {"/hop/0": ok()} | {aim: ok() for aim in AIMS}
    with raw_site(paths, {}) as host:
        urls = {name: f"http://{host}/{number}" for number, name in enumerate(answers)}
        changes = {"allow_private": [host], "connections_per_host": 100}
        with GuardProcess(settings(timeout_s=20.0, **changes)) as guard:
            asked = Asked(guard, list(urls.values()), tmp_path_factory.mktemp("odd"))
        yield Table(
            {name: asked.fates[url] for name, url in urls.items()},
            {name: asked.answers[url][1] for name, url in urls.items()},
            {name: bare(url) for name, url in urls.items()},
        )


@pytest.mark.parametrize(("kind", "name"), ROWS, ids=[f"{k}: {n}" for k, n in ROWS])
def test_an_odd_answer_is_a_picture(table: Table, kind: str, name: str) -> None:
    assert table.fates[name].status == "fetched", table.fates[name]
    assert table.pictures[name].startswith(PICTURE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_harms_or_is_forbidden_stays_refused(table: Table, name: str) -> None:
    assert table.fates[name].status == REFUSED[name][1], table.fates[name]


def test_never_fewer_pictures_than_img2dataset_alone(table: Table) -> None:
    taken = {name for name, body in table.bare.items() if body and body.startswith(PICTURE[:3])}
    lost = {name for name in taken if table.fates[name].status != "fetched"}
    assert lost <= set(OURS)
    fetched = {name for name, fate in table.fates.items() if fate.status == "fetched"}
    assert len(fetched) > len(taken) > 50, "and more"


@dataclass
class Hosts:
    fates: dict[tuple[str, str], GuardFate]
    """By (name, path)."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A host for each odd robots.txt, with a picture that it allows and one that it forbids."""
    with ExitStack() as stack:
        urls, names = {}, []
        for name, answer in {**ROBOTS, **NO_ROBOTS, **UNREACHABLE}.items():
            paths = {"/robots.txt": answer, "/yes/a.jpg": ok(), "/no/a.jpg": ok()}
            host = stack.enter_context(raw_site(paths, {}))
            names.append(host)
            urls |= {(name, path): f"http://{host}{path}" for path in ("/yes/a.jpg", "/no/a.jpg")}
        with GuardProcess(settings(allow_private=names)) as guard:
            asked = Asked(guard, list(urls.values()), tmp_path_factory.mktemp("robots"))
        yield Hosts({key: asked.fates[url] for key, url in urls.items()})


@pytest.mark.parametrize("name", ROBOTS)
def test_an_odd_robots_txt_is_read_and_obeyed(hosts: Hosts, name: str) -> None:
    assert hosts.fates[name, "/yes/a.jpg"].status == "fetched", hosts.fates[name, "/yes/a.jpg"]
    assert hosts.fates[name, "/no/a.jpg"].status == "rejected:robots"


@pytest.mark.parametrize("name", NO_ROBOTS)
def test_a_robots_txt_that_says_nothing_forbids_nothing(hosts: Hosts, name: str) -> None:
    for path in ("/yes/a.jpg", "/no/a.jpg"):
        assert hosts.fates[name, path].status == "fetched", hosts.fates[name, path]


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_site_that_cannot_say_its_rules_is_left_alone(hosts: Hosts, name: str) -> None:
    for path in ("/yes/a.jpg", "/no/a.jpg"):
        assert hosts.fates[name, path].status == "failed:robots_unreachable"


LINE = st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r"))


@given(before=st.lists(LINE.filter(bool), max_size=8), after=st.lists(LINE.filter(bool)))
def test_no_line_of_the_head_hides_the_others(before: list[bytes], after: list[bytes]) -> None:
    """Whatever stands around it, what the guard must know comes through, and once."""
    wanted = [b"X-Robots-Tag: noai", b"Content-Encoding: gzip"]
    # a line that begins with a blank goes on with the one before
    after = [line for line in after if line[:1] not in (b" ", b"\t")]
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *before, *wanted, *after, b"", b""])
    lines = _Lines(io.BytesIO(head + PICTURE))  # type: ignore[arg-type]
    read = []
    while (line := lines.readline()) != b"\r\n":
        read.append(line)
    assert read[0] == b"HTTP/1.1 200 OK\r\n"
    assert read.count(b"x-robots-tag: noai\r\n") == read.count(b"content-encoding: gzip\r\n") == 1
    assert lines.read() == PICTURE


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), min_size=1))
def test_plain_text_is_known_as_such(text: str) -> None:
    assert looks_like_text(text.encode()) and looks_like_text(b"\xef\xbb\xbf" + text.encode())

"""The guard as a process, against servers that misbehave; what img2dataset would get, and why
not."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import pyarrow as pa
import pytest

from data_tools.crawl.child_processes import GuardProcess
from data_tools.crawl.guard import one_line
from data_tools.crawl.part import TO_GUARD
from data_tools.crawl.verify import read_guard_fates
from data_tools.tables.schema import DataError, write_table
from data_tools.work.identity import user_agent
from tests.data_tools.crawl import pictures
from tests.data_tools.crawl.hostile_server import canary, hostile_site
from tests.data_tools.crawl.jobs import settings

DEADLINE_S = 3.0
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> tuple[int, bytes]:
    try:
        with NO_PROXY.open(url, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def write_rows(urls: list[str], folder: Path) -> None:
    table = pa.table({"url": urls, "upright_only": [False] * len(urls)})
    write_table(table, folder / "rows.parquet", TO_GUARD)


class Asked:
    """Every URL asked of one guard, all at once: bodies and fates by URL."""

    def __init__(self, guard: GuardProcess, urls: list[str], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write_rows(urls, folder)
        (folder / "fates.jsonl").touch()
        self.guard_pid = guard._process.pid
        self.address = guard.serve(folder / "rows.parquet", folder / "fates.jsonl")
        started = time.monotonic()
        with ThreadPoolExecutor(len(urls)) as threads:
            asked = [f"{self.address}?id={n}" for n in range(len(urls))]
            self.answers = dict(zip(urls, threads.map(get, asked), strict=True))
        self.seconds = time.monotonic() - started
        fates = read_guard_fates(folder / "fates.jsonl")
        assert len(fates) == len(urls), "one fate for each URL"
        self.fates = {url: fates[number] for number, url in enumerate(urls)}

    def body(self, url: str) -> bytes:
        status, body = self.answers[url]
        assert status == 200, self.fates[url]
        return body


# What test_hostile_table.py crawls, as far as the guard's own answers are looked at here.
FATES = {
    "/ok.jpg": "fetched",
    "/caf\u00e9 1.jpg": "fetched",
    "/rotated.jpg": "fetched",
    "/gzip.jpg": "fetched",
    "/redirect_ok": "fetched",
    "/busy_once.jpg": "fetched",
    "/status/404": "failed:http_404",
    "/busy_long.jpg": "failed:http_503",
    "/loris.jpg": "failed:timeout",
    "/forbidden/a.jpg": "rejected:robots",
}


@pytest.fixture(scope="module")
def site():
    with hostile_site() as running:
        yield running


@pytest.fixture(scope="module")
def asked(site, tmp_path_factory):
    with GuardProcess(settings(allow_private=[site.host])) as guard:
        urls = [site.url(path) for path in FATES]
        yield Asked(guard, urls, tmp_path_factory.mktemp("guard"))


@pytest.mark.parametrize("path", FATES)
def test_fate(asked, site, path):
    fate = asked.fates[site.url(path)]
    assert fate.status == FATES[path], fate.detail
    status, _ = asked.answers[site.url(path)]
    assert (status == 200) == (fate.status == "fetched")


def test_nothing_takes_longer_than_the_deadline(asked):
    """Of the URL, and once of robots.txt; the rest is this machine being busy."""
    assert asked.seconds < 2 * DEADLINE_S + 10


def test_the_original_is_what_is_hashed(asked, site):
    rotated = pictures.rotated_jpeg()
    fate = asked.fates[site.url("/rotated.jpg")]
    assert asked.body(site.url("/rotated.jpg")) != rotated
    assert fate.sha256 == hashlib.sha256(rotated).hexdigest()
    assert (fate.width, fate.height) == (60, 40)


def test_plain_images_pass_byte_for_byte(asked, site):
    for path in ("/ok.jpg", "/gzip.jpg", "/redirect_ok", "/caf\u00e9 1.jpg", "/busy_once.jpg"):
        assert asked.body(site.url(path)) == pictures.jpeg()


def test_http_status_and_reason_are_kept(asked, site):
    assert asked.fates[site.url("/status/404")].http_status == 404
    assert asked.fates[site.url("/ok.jpg")].http_status == 200
    assert asked.fates[site.url("/loris.jpg")].http_status is None
    assert "forbids" in asked.fates[site.url("/forbidden/a.jpg")].detail


def test_retries_only_where_they_can_help(asked, site):
    assert site.requests["/busy_once.jpg"] == 2
    assert site.requests["/status/404"] == 1
    assert site.requests["/busy_long.jpg"] == 1  # an hour is longer than the deadline
    assert site.requests["/forbidden/a.jpg"] == 0
    assert site.requests["/robots.txt"] == 1


def test_who_we_are_is_said_every_time(asked, site):
    assert site.user_agents == {user_agent("crawler@example.org")}


def test_only_known_ids_below_the_token_are_served(asked):
    root, token, _ = asked.address.rsplit("/", 2)
    assert get(f"{asked.address}?id={len(FATES)}")[0] == 404
    for bad in ("", "-1", "x", "1e1", "\u0661", "http://example.org/"):
        assert get(f"{asked.address}?id={quote(bad)}")[0] == 404
    assert get(f"{root}/{'A' * len(token)}/fetch?id=0")[0] == 404
    assert get(f"{root}/fetch?id=0")[0] == 404
    assert get(root + "/")[0] == 404


def test_the_guard_listens_on_the_loopback_only(asked):
    port = int(asked.address.split(":")[2].split("/")[0])
    guard = psutil.Process(asked.guard_pid)
    listening = [c.laddr for c in guard.net_connections() if c.status == "LISTEN"]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]


def ssrf_urls(site_host: str, port: int) -> list[str]:
    own_name = socket.gethostname()
    return [
        f"http://127.0.0.1:{port}/",
        f"http://localhost:{port}/",
        f"http://LOCALHOST:{port}/",
        f"http://localhost.:{port}/",
        f"http://127.1:{port}/",
        f"http://2130706433:{port}/",
        f"http://0x7f000001:{port}/",
        f"http://0177.0.0.1:{port}/",
        f"http://0.0.0.0:{port}/",
        f"http://0:{port}/",
        f"http://127.0.0.2:{port}/",
        f"http://[::1]:{port}/",
        f"http://[::]:{port}/",
        f"http://[::ffff:127.0.0.1]:{port}/",
        f"http://[0:0:0:0:0:ffff:7f00:1]:{port}/",
        f"http://{own_name}:{port}/",
        f"http://user:secret@127.0.0.1:{port}/",
        f"http://example.org@127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}\\@example.org/",
        f"http://\uff11\uff12\uff17.0.0.1:{port}/",  # full-width digits
        f"http://127\u30020.0.1:{port}/",  # an ideographic full stop
        f"http://{site_host}/redirect",
        *_at_second_address(port),
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "file:///proc/self/environ",
        f"ftp://127.0.0.1:{port}/",
        f"gopher://127.0.0.1:{port}/_GET",
        "data:image/png;base64,AAAA",
        f"//127.0.0.1:{port}/",
        f"http:///127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}:{port}/",
        f"http://[127.0.0.1]:{port}/",
        f"http://127.0.0.1%00.example.org:{port}/",
    ]


def second_address() -> str:
    """Of this machine's network card; 127.0.0.2 where it has none."""
    cards = [card for each in psutil.net_if_addrs().values() for card in each]
    found = [card.address for card in cards if card.family == socket.AF_INET]
    return next((each for each in found if not each.startswith("127.")), "127.0.0.2")


def _at_second_address(port: int) -> list[str]:
    address = second_address()
    a, b, c, d = (int(each) for each in address.split("."))
    return [
        f"http://{address}:{port}/",
        f"http://[::ffff:{address}]:{port}/",
        f"http://[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]:{port}/",
        f"http://[64:ff9b::{address}]:{port}/",
        f"http://{a << 24 | b << 16 | c << 8 | d}:{port}/",
    ]


def test_nobody_reaches_the_canary(tmp_path):
    with canary() as trap, hostile_site() as site:
        site.redirect_to = f"http://127.0.0.1:{trap.port}/"
        urls = ssrf_urls(site.host, trap.port)
        for address in ("127.0.0.1", second_address()):
            with socket.create_connection((address, trap.port), timeout=5):
                pass  # the trap works
        with GuardProcess(settings(allow_private=[site.host])) as guard:
            asked = Asked(guard, urls, tmp_path)
        assert trap.connections == 2, "only the test itself may have come"
        assert site.requests["/redirect"] == 1, "the redirect was followed up to the refusal"
    statuses = {url: fate.status for url, fate in asked.fates.items()}
    assert statuses[f"http://localhost:{trap.port}/"] == "rejected:private_address"
    assert statuses[f"http://{site.host}/redirect"] == "rejected:private_address"
    assert statuses[f"http://[::ffff:127.0.0.1]:{trap.port}/"] == "rejected:private_address"
    assert statuses[f"http://{second_address()}:{trap.port}/"] == "rejected:private_address"
    assert statuses["file:///proc/self/environ"] == "rejected:scheme"
    assert all(status.startswith(("rejected:", "failed:dns")) for status in statuses.values())


@pytest.mark.parametrize(
    ("robots", "respected", "status"),
    [
        ("User-agent: *\nDisallow: /\n", True, "rejected:robots"),
        ("User-agent: *\nDisallow: /\n", False, "fetched"),
        ("User-agent: clip-pretrain\nDisallow: /ok\n\nUser-agent: *\nAllow: /", True, None),
        ("User-agent: otherbot\nDisallow: /\n", True, "fetched"),
        (404, True, "fetched"),
        (403, True, "fetched"),
        (500, True, "failed:robots_unreachable"),
    ],
)
def test_robots_txt(tmp_path, robots, respected, status):
    with hostile_site(robots=robots) as site:
        changes = {"allow_private": [site.host], "respect_robots_txt": respected}
        with GuardProcess(settings(**changes)) as guard:
            asked = Asked(guard, [site.url("/ok.jpg")], tmp_path)
        fate = asked.fates[site.url("/ok.jpg")]
        assert fate.status == (status or "rejected:robots"), fate.detail
        assert site.requests["/ok.jpg"] == (1 if fate.status == "fetched" else 0)


def test_dead_hosts_and_names(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        dead, unknown = f"http://127.0.0.1:{port}/a.jpg", "http://no-such-host.invalid/a.jpg"
        with GuardProcess(settings(allow_private=[f"127.0.0.1:{port}"])) as guard:
            asked = Asked(guard, [dead, unknown, "http://a.invalid:99999/", "nonsense"], tmp_path)
    assert asked.fates[dead].status == "failed:connect"
    assert asked.fates[unknown].status == "failed:dns"
    assert asked.fates["http://a.invalid:99999/"].status == "rejected:bad_url"
    assert asked.fates["nonsense"].status == "rejected:scheme"


def test_one_host_is_asked_by_few_at_a_time(tmp_path):
    with hostile_site(delay_s=0.1) as site:
        changes = {"allow_private": [site.host], "connections_per_host": 3}
        urls = [site.url(f"/n/{n}.jpg") for n in range(24)]
        with GuardProcess(settings(**changes)) as guard:
            asked = Asked(guard, urls, tmp_path)
        assert {fate.status for fate in asked.fates.values()} == {"fetched"}
        assert site.most_at_once <= 3


def test_a_new_part_ends_the_old_one(tmp_path):
    with hostile_site() as site:
        with GuardProcess(settings(allow_private=[site.host])) as guard:
            first = Asked(guard, [site.url("/n/1.jpg")], tmp_path / "1")
            second = Asked(guard, [site.url("/n/2.jpg")], tmp_path / "2")
            assert get(f"{first.address}?id=0")[0] == 404
            assert get(f"{second.address}?id=0")[0] == 200


def test_a_dead_guard_is_told_and_not_waited_for(tmp_path):
    write_rows(["http://a.invalid/"], tmp_path)
    with GuardProcess(settings()) as guard:
        guard.serve(tmp_path / "rows.parquet", tmp_path / "fates.jsonl")
        guard.check_alive()
        os.kill(guard._process.pid, 9)
        guard._process.wait(timeout=20)
        with pytest.raises(DataError, match="guard process ended with code -9"):
            guard.check_alive()
        with pytest.raises(DataError, match="guard process ended"):
            guard.serve(tmp_path / "rows.parquet", tmp_path / "fates.jsonl")


def test_web_text_in_a_fate_is_one_printable_line():
    assert one_line("a\nb\x1b[31m\x00" + "x" * 500) == ("a b [31m " + "x" * 500)[:200]

"""The table of what the web does to a crawler: every case in one crawl through driver, guard and
img2dataset, next to what img2dataset 1.47 alone does.

Cases without a URL of their own are elsewhere: killed workers, signals, exit codes, another number
of samples, a full disk, the same input again in test_driver.py and test_disturbed.py; damaged tars
in test_verify.py; canaries in test_guard.py; the size of the input in test_part_plan.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_tools import crawl
from data_tools.tables.schema import FATES, DatasetPaths, read_table
from data_tools.work.identity import user_agent
from tests.data_tools.crawl import pictures
from tests.data_tools.crawl.hostile_server import Site, canary, hostile_site, make_all
from tests.data_tools.crawl.jobs import fetched_rows, make_job, stored_image, write_kept
from tests.data_tools.crawl.raw_server import raw_site

# one crawl of 114 URLs through driver, guard and img2dataset: 10 s on a quiet machine
pytestmark = pytest.mark.slow

Look = Callable[[np.ndarray], bool]


@dataclass(frozen=True)
class Case:
    url: str
    """Begins with a path of the main site, or with {NAME} of another."""
    fate: str
    alone: str = ""
    """What img2dataset 1.47 alone makes of it, where it was measured."""
    look: Look | None = None
    """What must be true of the stored picture, (height, width, 3) RGB."""
    http_status: int | None = None


def grey(level: int) -> Look:
    return lambda image: bool(np.all(np.abs(image - level) <= 2))


def like_the_gradient(image: np.ndarray) -> bool:
    """The stored picture is the plain 60 x 40 one, upright."""
    upright = np.asarray(pictures.gradient()).astype(int)
    return image.shape == upright.shape and bool(np.abs(image - upright).mean() < 6)


def red(image: np.ndarray) -> bool:
    return bool(image[20, 30, 0] > 230 and image[20, 30, 2] < 25)


def white_on_the_right(image: np.ndarray) -> bool:
    return bool(image[20, 50].min() > 240 and image[20, 10, 0] > 180 and image[20, 10, 1] < 30)


def black_on_the_right(image: np.ndarray) -> bool:
    return image.shape == (40, 60, 3) and bool(image[20, 5].min() > 240 and image[20, 50].max() < 9)


GOOD, DEAD = "fetched", "decode error"
PIXELS = [
    Case("/ok.jpg", GOOD, "fetched", like_the_gradient, 200),
    Case("/ok.png", GOOD, "fetched", like_the_gradient),
    Case("/grey.jpg", GOOD, "fetched"),
    Case("/grey_alpha.png", GOOD),
    Case("/16bit.png", GOOD, "white, success", grey(100)),
    Case("/16bit_rgb.png", GOOD, "white, success"),
    Case("/float.tiff", GOOD, "black, success", grey(128)),
    Case("/rotated.jpg", GOOD, "lies on its side, success", like_the_gradient),
    Case("/rotated.png", GOOD, "lies on its side, success", like_the_gradient),
    Case("/rotated.tiff", GOOD, "white, success", black_on_the_right),
    Case("/cmyk.jpg", GOOD, "", like_the_gradient),
    Case("/transparent.png", GOOD, "white where clear, success", white_on_the_right),
    Case("/palette.png", GOOD, "", white_on_the_right),
    Case("/animated.gif", GOOD, "first frame", red),
    Case("/animated.webp", GOOD, "", red),
    Case("/animated.png", GOOD, "", red),
    Case("/picture.avif", GOOD, "first frame", like_the_gradient),
    Case("/picture.bmp", GOOD, "", like_the_gradient),
    Case("/icon.gif", GOOD),
    Case("/as_html.jpg", GOOD, "fetched", like_the_gradient),
    Case("/pixel.gif", "rejected:too_small", "1 x 1, success"),
    Case("/strip.png", "rejected:aspect", "6.3 s of CPU and 1.3 GB for 1 x 5000"),
    Case("/long.png", "rejected:too_long_side"),
    Case("/bomb.png", "rejected:too_many_pixels", "432 MB decoded, then judged"),
    Case("/bomb_33000.png", "rejected:too_many_pixels", "refused by OpenCV"),
    Case("/bomb.jpg", "rejected:too_many_pixels"),
    Case("/bomb.gif", "rejected:too_many_pixels"),
    Case("/cut.jpg", "rejected:not_decodable", DEAD),
    Case("/drawing.svg", "rejected:not_an_image", DEAD),
    Case("/page.html", "rejected:not_an_image", DEAD),
    Case("/empty.jpg", "rejected:not_an_image", DEAD, http_status=200),
    Case("/script.ps", "rejected:not_an_image", DEAD),
    Case("/archive.zip", "rejected:not_an_image", DEAD),
]
TRANSPORT = [
    Case("/loris.jpg", "failed:timeout", "a thread for as long as the server likes"),
    Case("/silent.jpg", "failed:timeout"),
    Case("{raw}/headers_loris.jpg", "failed:timeout"),
    Case("{raw}/continue.jpg", "failed:timeout"),
    Case("/endless.jpg", "rejected:too_large", "read into RAM whole"),
    Case("/declared_large.jpg", "rejected:too_large", "read into RAM whole"),
    Case("/gzip.jpg", GOOD, DEAD, like_the_gradient),
    Case("/deflate.jpg", GOOD, DEAD, like_the_gradient),
    Case("/raw_deflate.jpg", GOOD, DEAD, like_the_gradient),
    Case("/gzip_bomb.jpg", "rejected:too_large", DEAD),
    Case("/gzip_cut.jpg", "failed:read"),
    Case("/gzip_not.jpg", GOOD, "fetched", like_the_gradient),
    Case("/gzip_twice.jpg", "failed:content_encoding"),
    Case("/brotli.jpg", "failed:content_encoding"),
    Case("/hang_up.jpg", "failed:read"),
    Case("/short.jpg", "failed:read"),
    Case("/many_headers.jpg", "failed:protocol"),
    Case("/long_header.jpg", "failed:protocol"),
    Case("{raw}/ssh.jpg", "failed:protocol"),
    Case("{raw}/bad_chunk.jpg", "failed:protocol"),
    Case("{raw}/two_lengths.jpg", "failed:protocol"),
    Case("{tls}/ok.jpg", "failed:tls"),
    Case("/caf\u00e9 1.jpg", GOOD, "'ascii' codec can't encode", like_the_gradient),
    Case("/caf%C3%A9%201.jpg?x=1#part", GOOD),
    Case("http://b\u00fccher.invalid/a.jpg", "failed:dns"),
    Case("http://nowhere.invalid/a.jpg", "failed:dns"),
    Case("{dead}/a.jpg", "failed:connect"),
    Case("http://a.invalid:99999/", "rejected:bad_url"),
    Case("http://a.invalid/" + "x" * 9000, "rejected:bad_url"),
    Case("nonsense", "rejected:scheme"),
]
STATUS = [
    Case("/status/204", "failed:http_204", http_status=204),
    Case("/status/400", "failed:http_400", http_status=400),
    Case("/status/403", "failed:http_403", http_status=403),
    Case("/status/404", "failed:http_404", "retried at once, if at all", http_status=404),
    Case("/status/500", "failed:http_500", http_status=500),
    Case("/status/502", "failed:http_502", http_status=502),
    Case("/busy_once.jpg", GOOD, "Retry-After is not read"),
    Case("/busy_long.jpg", "failed:http_503", "Retry-After is not read", http_status=503),
    Case("{busy}/too_many.jpg", "failed:http_429", "Retry-After is not read", http_status=429),
    Case("/redirect_ok", GOOD, "", like_the_gradient),
    Case("/loop", "failed:too_many_redirects"),
    Case("/redirect_nowhere", "failed:too_many_redirects"),
]
SIDES = [
    Case("file:///etc/hostname", "rejected:scheme", "read from the disk, success"),
    Case("/redirect_file", "rejected:scheme", "refused"),
    Case("ftp://127.0.0.1/a.jpg", "rejected:scheme", "tried"),
    Case("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "rejected:scheme", "tried"),
    Case("{canary}/", "rejected:private_address", "fetched"),
    Case("http://localhost:{canary_port}/", "rejected:private_address", "fetched"),
    Case("http://2130706433:{canary_port}/", "rejected:bad_url", "fetched"),
    Case("/redirect", "rejected:private_address", "fetched"),
]
WISHES = [
    Case("/forbidden/a.jpg", "rejected:robots", "robots.txt is never asked for"),
    Case("/redirect_forbidden", "rejected:robots"),
    Case("{robots_500}/ok.jpg", "failed:robots_unreachable"),
    Case("{robots_silent}/ok.jpg", "failed:timeout"),
    Case("{robots_404}/ok.jpg", GOOD),
    Case("{robots_endless}/ok.jpg", GOOD),
    Case("{robots_binary}/ok.jpg", GOOD),
    Case("{tdm_reserved}/ok.jpg", "rejected:tdm_reservation"),
    Case("{tdm_reserved}/ok.png", GOOD),
    Case("{tdm_500}/ok.jpg", GOOD),
    Case("{tdm_silent}/ok.jpg", GOOD),
    Case("{tdm_endless}/ok.jpg", GOOD),
    Case("{tdm_binary}/ok.jpg", GOOD),
    Case("/noai.jpg", "rejected:x_robots_tag", "honoured"),
    Case("/noimageai.jpg", "rejected:x_robots_tag", "honoured"),
    Case("/noindex.jpg", "rejected:x_robots_tag"),
    Case("/none.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/noml.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/second_header.jpg", "rejected:x_robots_tag"),
    Case("/to_us.jpg", "rejected:x_robots_tag"),
    Case("/to_all.jpg", "rejected:x_robots_tag"),
    Case("/gone_later.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/gone_on_a_wednesday.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/gone.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/gone_iso.jpg", "rejected:x_robots_tag", "ignored"),
    Case("/still_there.jpg", GOOD),
    Case("/other_bot.jpg", GOOD, "honoured though not meant"),
    Case("/all.jpg", GOOD),
    Case("/tdm.jpg", "rejected:tdm_reservation", "ignored"),
    Case("/tdm_0.jpg", GOOD),
    Case("/cookie.jpg", GOOD),
]
CASES = [*PIXELS, *TRANSPORT, *STATUS, *SIDES, *WISHES]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno hex\r\n"
TWO_LENGTHS = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 9\r\n\r\nabcabcabc"


@dataclass
class Crawled:
    paths: DatasetPaths
    uids: dict[str, str]  # Case.url -> uid
    fates: dict[str, dict]  # uid -> row of FATES
    main: Site
    busy: Site
    canary_connections: int


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawled]:
    out_dir: Path = tmp_path_factory.mktemp("hostile")
    make_all()
    with ExitStack() as stack:
        main, busy = (stack.enter_context(hostile_site()) for _ in range(2))
        trap = stack.enter_context(canary())
        main.redirect_to = f"http://127.0.0.1:{trap.port}/"
        raw = stack.enter_context(
            raw_site(
                {
                    "/ssh.jpg": b"SSH-2.0-OpenSSH_9.6\r\n",
                    "/bad_chunk.jpg": CHUNKED,
                    "/two_lengths.jpg": TWO_LENGTHS,
                    "/headers_loris.jpg": b"HTTP/1.1 200 OK\r\n",
                },
                {"/headers_loris.jpg": b"X-A: b\r\n", "/continue.jpg": b"HTTP/1.1 100 C\r\n\r\n"},
            )
        )
        robots = {"500": 500, "silent": "silent", "404": 404, "endless": "endless"}
        tdm: dict[str, str | int] = {
            "reserved": json.dumps([{"location": "/*.jpg$", "tdm-reservation": 1}])
        }
        tdm |= {"500": 500, "silent": "silent", "endless": "endless", "binary": "[\x00" * 9999}
        robots["binary"] = "\x00\x01\ufffd: *\nCrawl-delay: -inf\n" * 50
        others = {
            f"robots_{name}": stack.enter_context(hostile_site(robots=value)).host
            for name, value in robots.items()
        }
        for name, text in tdm.items():
            others[f"tdm_{name}"] = stack.enter_context(hostile_site(tdm_file=text)).host
        dead = f"127.0.0.1:{_closed_port()}"
        hosts = {"main": main.host, "busy": busy.host, "raw": raw, "dead": dead, **others}
        names = {name: f"http://{host}" for name, host in hosts.items()}
        names |= {"canary": f"http://127.0.0.1:{trap.port}", "canary_port": str(trap.port)}
        names["tls"] = f"https://{main.host}"
        urls = [
            names["main"] + case.url if case.url[0] == "/" else case.url.format(**names)
            for case in CASES
        ]
        rows = write_kept(out_dir, urls)
        job = make_job(out_dir, allow_private=list(hosts.values()), threads=128)
        job.crawl.timeout_s = 12.0
        job.crawl.connections_per_host, job.crawl.max_image_bytes = 128, 5_000_000
        paths = DatasetPaths(out_dir)
        crawl.run(job, paths)
        fates = {row["uid"]: row for row in read_table(paths.fates("crawl"), FATES).to_pylist()}
        uids = {case.url: row["uid"] for case, row in zip(CASES, rows, strict=True)}
        yield Crawled(paths, uids, fates, main, busy, trap.connections)


def _closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@pytest.mark.parametrize("case", CASES, ids=[case.url[:40] for case in CASES])
def test_fate(crawled, case):
    fate = crawled.fates[crawled.uids[case.url]]
    assert fate["status"] == case.fate, fate["detail"]
    if case.http_status is not None:
        assert fate["http_status"] == case.http_status
    row = fetched_rows(crawled.paths).get(crawled.uids[case.url])
    assert (row is not None) == (case.fate == GOOD)
    if case.look is not None and row is not None:
        assert case.look(stored_image(crawled.paths, row))


def test_the_table_has_its_forty_cases():
    assert len({case.url for case in CASES}) == len(CASES) >= 40


def test_nobody_came_to_the_canary(crawled):
    assert crawled.canary_connections == 0


def test_attempts_are_repeated_only_where_they_can_help(crawled):
    asked = crawled.main.requests
    for path in ("400", "403", "404", "500"):
        assert asked[f"/status/{path}"] == 1
    assert asked["/status/502"] == 3
    assert asked["/busy_once.jpg"] == 2
    assert asked["/busy_long.jpg"] == asked["/gzip_bomb.jpg"] == asked["/loris.jpg"] == 1
    assert asked["/robots.txt"] == asked["/.well-known/tdmrep.json"] == 1


def test_who_asks_says_so_and_takes_no_cookies(crawled):
    assert crawled.main.user_agents == {user_agent("crawler@example.org")}
    assert not crawled.main.cookies

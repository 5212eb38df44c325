"""The guard: a process that listens on the loopback and fetches from the web for img2dataset. Only
the guard connects to the outside.

img2dataset gets URLs of the form http://127.0.0.1:PORT/TOKEN/fetch?id=N and nothing else. The guard
answers only the ids of the part being crawled, and only below a random token, so that no other user
of the machine can use it as a proxy. For each id it appends one line to the part's fates file, by
which the driver also sees that the crawl is alive.

    python -m data_tools.crawl.guard SETTINGS-AS-JSON

Parts come as JSON lines on stdin, {"rows": parquet with url and upright_only, "fates": file to
append to}; each is answered on stdout by {"url": ...}. When stdin ends the process ends, so that
a driver that was killed leaves no guard behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import socket
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import pyarrow.parquet as pq
from aiohttp import web
from yarl import URL

from data_tools.crawl.addresses import AddressPolicy
from data_tools.crawl.fetch import Fetcher
from data_tools.crawl.fetch_error import Budget, FetchError
from data_tools.crawl.fetch_request import FetchLimits, FetchRequest, Headers
from data_tools.crawl.images import (
    CheckedImage,
    ImageLimits,
    ImageRefused,
    check_image,
    is_complete_image,
    is_plain_jpeg,
    looks_like_image,
)
from data_tools.crawl.opt_out import check_robots_tags, check_tdm_reservation
from data_tools.crawl.robots import RobotsGate
from data_tools.crawl.tdm_file import TdmGate
from data_tools.tables.schema import FETCHED_STATUS

PRODUCT = "clip-pretrain"
CANNOT_WRITE = os.EX_IOERR
WAIT_PULSE_S = 1.0
# Each may hold a decoded image: 50 megapixels at 4 bytes per pixel (Pillow) are 200 MB.
DECODE_THREADS = 2
# getaddrinfo blocks its thread, for seconds if the name server is dead: with asyncio's default of
# cores + 4 threads, six dead names would stop all others.
RESOLVER_THREADS = 256


@dataclass(frozen=True)
class GuardSettings:
    """The settings of CrawlConfig and SourcesConfig that are about requests to sites."""

    user_agent: str
    timeout_s: float
    connect_timeout_s: float
    min_bytes_per_s: float | None
    connections_per_host: int
    requests_per_host_per_s: float | None
    max_image_bytes: int
    max_image_pixels: int
    min_image_side: int
    max_image_side: int
    max_image_aspect: float
    respect_robots_txt: bool
    respect_tdm_reservation: bool
    allow_private: list[str]
    host_wait_s: float
    """Seconds that one URL may wait for the turns of its hosts."""


@dataclass(frozen=True)
class GuardFate:
    """One line of the fates file: what became of the part's row `id`. Width and height (pixels) and
    sha256 describe the bytes as the site sent them."""

    id: int
    status: str
    http_status: int | None = None
    detail: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""


@dataclass
class Part:
    """The part that is being served; ids are positions in its lists."""

    token: str
    urls: list[str]
    upright_only: list[bool]
    """Per URL: the image must not be turned by its EXIF orientation, because boxes of faces to be
    blurred were found in the file as it is."""
    fates: TextIO


class Guard:
    """Answers img2dataset's requests for the URLs of one part at a time."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        limits = FetchLimits(
            settings.connections_per_host,
            settings.requests_per_host_per_s or 0.0,  # no limit
            settings.connect_timeout_s,
            settings.min_bytes_per_s or 0.0,
        )
        policy = AddressPolicy(settings.allow_private)
        self._fetcher = Fetcher(policy, settings.user_agent, limits)
        self._robots = RobotsGate(self._fetcher, PRODUCT, settings.timeout_s)
        self._tdm = TdmGate(self._fetcher, settings.timeout_s)
        self._request = FetchRequest(
            settings.max_image_bytes,
            check_url=self._check_url,
            check_headers=self._check_headers,
            recognises=looks_like_image,
            is_complete=is_complete_image,
        )
        self._sizes = ImageLimits(
            settings.max_image_pixels,
            settings.min_image_side,
            settings.max_image_side,
            settings.max_image_aspect,
        )
        self._decoders = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        self._part: Part | None = None

    async def close(self) -> None:
        await self._fetcher.__aexit__()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def open_part(self, rows: Path, fates: Path) -> str:
        """Serve the ids of this part and of no other; returns the token of its addresses."""
        if self._part is not None:
            self._part.fates.close()
        with pq.ParquetFile(rows) as file:  # pq.read_table imports pandas first, 0.3 s of CPU
            table = file.read()
        urls, upright_only = table["url"].to_pylist(), table["upright_only"].to_pylist()
        token = secrets.token_urlsafe(24)
        self._part = Part(token, urls, upright_only, fates.open("a", buffering=1))
        return self._part.token

    async def tell_of_waits(self) -> None:
        """For ever: change the time of the fates file while a URL waits for its host's turn, so
        that the driver sees that nothing hangs."""
        while True:
            await asyncio.sleep(WAIT_PULSE_S)
            if self._fetcher.turns.waiting and self._part is not None:
                os.utime(self._part.fates.fileno())

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request of img2dataset: fetch the URL, write its fate, send the image or
        502."""
        part = self._part
        number = request.query.get("id", "")
        if part is None or not secrets.compare_digest(
            request.match_info["token"].encode(), part.token.encode()
        ):
            raise web.HTTPNotFound()
        if not number.isascii() or not number.isdigit() or int(number) >= len(part.urls):
            raise web.HTTPNotFound()
        fate, content = await self._fetch(part, int(number))
        if not part.fates.closed:
            _write_or_die(part.fates, json.dumps(asdict(fate)) + "\n")
        if content is None:
            return web.Response(status=502, reason=fate.status)
        return web.Response(body=content, content_type="application/octet-stream")

    async def _fetch(self, part: Part, number: int) -> tuple[GuardFate, bytes | None]:
        http_status = None
        try:
            budget = Budget(self._settings.timeout_s, self._settings.host_wait_s)
            response = await self._fetcher.get(part.urls[number], budget, self._request)
            http_status = response.http_status
            image, digest = await self._check(response.content)
            if image.turned and part.upright_only[number]:
                raise ImageRefused("rejected:turned_face_boxes", "EXIF turns it, not its boxes")
        except FetchError as error:
            return GuardFate(number, error.status, error.http_status, one_line(error.detail)), None
        except ImageRefused as error:
            return GuardFate(number, error.status, http_status, one_line(error.detail)), None
        except Exception as error:  # whatever a site provokes: its URL gets a fate, others go on
            return GuardFate(number, "failed:guard", http_status, one_line(f"{error!r}")), None
        size = (image.width, image.height)
        fate = GuardFate(number, FETCHED_STATUS, http_status, "", *size, digest)
        return fate, image.content

    async def _check(self, content: bytes) -> tuple[CheckedImage, str]:
        """The checked image and the hash of the site's bytes."""
        if is_plain_jpeg(content):  # to hand it to another thread takes as long as the work itself
            return self._hash_and_check(content)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, self._hash_and_check, content)

    def _hash_and_check(self, content: bytes) -> tuple[CheckedImage, str]:
        return check_image(content, self._sizes), hashlib.sha256(content).hexdigest()

    async def _check_url(self, url: URL) -> None:
        if self._settings.respect_robots_txt:
            await self._robots.check(url)
        if self._settings.respect_tdm_reservation:
            await self._tdm.check(url)

    def _check_headers(self, headers: Headers) -> None:
        if self._settings.respect_robots_txt:
            check_robots_tags(headers, PRODUCT)
        if self._settings.respect_tdm_reservation:
            check_tdm_reservation(headers)


def _write_or_die(fates: TextIO, line: str) -> None:
    """Write a fate, or end the process if that fails (disk full): without the line the driver would
    take the URL for one that was never asked."""
    try:
        fates.write(line)
    except OSError as error:
        print(f"the crawl's guard can't write {fates.name}: {error}", file=sys.stderr, flush=True)
        os._exit(CANNOT_WRITE)


def one_line(text: str) -> str:
    """Text from the web, fit for a table cell: printable, at most 200 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:200]


async def serve(settings: GuardSettings) -> None:
    """Serve the parts that come on stdin until it ends."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve"))
    guard = Guard(settings)
    application = web.Application()
    application.router.add_get("/{token}/fetch", guard.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await web.SockSite(runner, listener).start()
    telling = asyncio.create_task(guard.tell_of_waits())
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    try:
        while line := await commands.readline():
            command = json.loads(line)
            token = guard.open_part(Path(command["rows"]), Path(command["fates"]))
            print(
                json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/fetch"}),
                flush=True,
            )
    finally:
        telling.cancel()
        await guard.close()
        await runner.cleanup()


def main() -> None:
    warnings.simplefilter("ignore")  # Pillow warns of every odd header
    try:
        asyncio.run(serve(GuardSettings(**json.loads(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

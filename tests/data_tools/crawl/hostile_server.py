"""A web server that does what the web does, on 127.0.0.1, one port a site; and a canary.

with hostile_site() as site:      site.host == "127.0.0.1:PORT", site.url("/ok.jpg")
with canary() as trap:            trap.connections counts who came although nobody should
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Union

from aiohttp import web
from multidict import CIMultiDict

from tests.data_tools.crawl import pictures

Answer = Union[bytes, Callable[[web.Request], web.StreamResponse]]
ROBOTS_OPEN = "User-agent: *\nDisallow: /forbidden\n"


@dataclass
class Site:
    """`requests` counts by path. `robots` is a text, the HTTP status of /robots.txt, "endless" or
    "silent"."""

    robots: str | int = ROBOTS_OPEN
    tdm_file: str | int = 404
    """Text of /.well-known/tdmrep.json, its HTTP status, "endless" or "silent"."""
    delay_s: float = 0.0
    redirect_to: str = ""
    flaky_status: int = 503
    """Of /flaky/N.jpg."""
    host: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    user_agents: set[str] = field(default_factory=set)
    cookies: set[str] = field(default_factory=set)
    most_at_once: int = 0
    _now: int = 0

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.raw_path] += 1
        self.user_agents.add(request.headers.get("User-Agent", ""))
        self.cookies.update(request.cookies)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._answer(request)
        finally:
            self._now -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/robots.txt":
            return await self._said(self.robots, request)
        if path == "/.well-known/tdmrep.json":
            return await self._said(self.tdm_file, request)
        await asyncio.sleep(self.delay_s)
        if path in FILES:
            return web.Response(body=_made(FILES[path]), content_type="image/jpeg")
        if path in HEADERS:
            return web.Response(body=pictures.jpeg(), headers=CIMultiDict(HEADERS[path]))
        if path in ENCODED:
            encoding, body = ENCODED[path]
            return web.Response(body=_made(body), headers={"Content-Encoding": encoding})
        if path in ODD:
            return await ODD[path](self, request)
        if path.startswith("/status/"):
            return web.Response(status=int(path.split("/")[2]))
        if path.startswith("/flaky/") and self.flaky_status != 200:
            return web.Response(status=self.flaky_status, headers={"Retry-After": "60"})
        if path.startswith(("/n/", "/flaky/")):  # any number of different pictures
            number = int(path.split("/")[2].split(".")[0])
            return web.Response(body=pictures.jpeg(50 + number % 40, 50 + number // 40))
        return web.Response(status=404)

    async def _said(self, what: str | int, request: web.Request) -> web.StreamResponse:
        if what == "endless":
            return await _endless(self, request)
        if what == "silent":
            return await _silent(self, request)
        if isinstance(what, int):
            return web.Response(status=what)
        return web.Response(text=what)


FILES: dict[str, Callable[[], bytes]] = {
    "/ok.jpg": pictures.jpeg,
    "/ok.png": pictures.png,
    "/caf\u00e9 1.jpg": pictures.jpeg,
    "/forbidden/a.jpg": pictures.jpeg,
    "/large.jpg": lambda: pictures.jpeg(900, 600),
    "/rotated.jpg": pictures.rotated_jpeg,
    "/16bit.png": pictures.png_16_bit,
    "/16bit_rgb.png": pictures.rgb_png_16_bit,
    "/float.tiff": pictures.float_tiff,
    "/cmyk.jpg": pictures.cmyk_jpeg,
    "/transparent.png": pictures.transparent_png,
    "/palette.png": pictures.palette_png,
    "/animated.gif": lambda: pictures.animated("GIF"),
    "/animated.webp": lambda: pictures.animated("WEBP"),
    "/animated.png": lambda: pictures.animated("PNG"),
    "/picture.avif": lambda: pictures.encode(pictures.gradient(), "AVIF"),
    "/picture.bmp": lambda: pictures.encode(pictures.gradient(), "BMP"),
    "/grey.jpg": lambda: pictures.encode(pictures.gradient().convert("L"), "JPEG"),
    "/grey_alpha.png": lambda: pictures.encode(pictures.gradient().convert("LA"), "PNG"),
    "/rotated.png": pictures.rotated_png,
    "/rotated.tiff": pictures.rotated_16_bit_tiff,
    "/strip.png": lambda: pictures.header_png(5000, 20),
    "/long.png": lambda: pictures.header_png(20_001, 1200),
    "/bomb.png": pictures.bomb_png,
    "/bomb_33000.png": lambda: pictures.bomb_png(33_000),
    "/bomb.jpg": pictures.bomb_jpeg,
    "/bomb.gif": pictures.bomb_gif,
    "/archive.zip": lambda: b"PK\x03\x04" + b"\0" * 100,
    "/page.html": lambda: b"<!doctype html><title>an image?</title>",
    "/drawing.svg": lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "/empty.jpg": lambda: b"",
    "/cut.jpg": lambda: pictures.jpeg(400, 300)[:2000],
    "/script.ps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "/icon.gif": lambda: pictures.encode(pictures.gradient(9, 9), "GIF"),
    "/pixel.gif": lambda: pictures.encode(pictures.gradient(1, 1), "GIF"),
}


async def _loris(site: Site, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for byte in pictures.jpeg()[:100]:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.5)
    return response


async def _silent(site: Site, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def _endless(site: Site, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(2000):
        await response.write(b"\xff" * 100_000)
    return response


async def _declared_large(site: Site, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "200000000"})
    await response.prepare(request)
    await asyncio.sleep(60)
    return response


async def _redirect(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": site.redirect_to})


async def _redirect_ok(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=301, headers={"Location": "ok.jpg"})


async def _redirect_file(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "file:///etc/passwd"})


async def _redirect_loop(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/loop"})


async def _redirect_nowhere(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302)


async def _redirect_forbidden(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/forbidden/a.jpg"})


async def _hang_up(site: Site, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _busy_once(site: Site, request: web.Request) -> web.StreamResponse:
    if site.requests[request.raw_path] == 1:
        return web.Response(status=503, headers={"Retry-After": "1"})
    return web.Response(body=pictures.jpeg())


async def _busy_long(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=503, headers={"Retry-After": "3600"})


async def _too_many(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": "3600"})


async def _short(site: Site, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "5000"})
    await response.prepare(request)
    await response.write(pictures.jpeg()[:500])
    assert request.transport is not None
    request.transport.close()
    return response


async def _many_headers(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(headers={f"X-{number}": "y" for number in range(5000)})


async def _long_header(site: Site, request: web.Request) -> web.StreamResponse:
    return web.Response(headers={"X-Long": "y" * 100_000})


# A good JPEG with these headers.
HEADERS: dict[str, list[tuple[str, str]]] = {
    "/noai.jpg": [("X-Robots-Tag", "noai")],
    "/noimageai.jpg": [("x-robots-tag", "NoImageAI")],
    "/noml.jpg": [("X-Robots-Tag", "nofollow, noml")],
    "/none.jpg": [("X-Robots-Tag", "none")],
    "/noindex.jpg": [("X-Robots-Tag", "max-image-preview: large, noindex")],
    "/second_header.jpg": [("X-Robots-Tag", "googlebot: nofollow"), ("X-Robots-Tag", "noai")],
    "/to_us.jpg": [("X-Robots-Tag", "otherbot: nofollow, clip-pretrain: noai")],
    "/to_all.jpg": [("X-Robots-Tag", "*: noai")],
    "/gone_later.jpg": [("X-Robots-Tag", "unavailable_after: 1 Jan 2099 00:00:00 GMT, noimageai")],
    "/gone_on_a_wednesday.jpg": [
        ("X-Robots-Tag", "unavailable_after: Wed, 03 Dec 2098 13:09:53 GMT, noai")
    ],
    "/gone.jpg": [("X-Robots-Tag", "unavailable_after: Wed, 03 Dec 2014 13:09:53 GMT")],
    "/gone_iso.jpg": [("X-Robots-Tag", "unavailable_after: 2014-12-03T13:09:53Z")],
    "/still_there.jpg": [("X-Robots-Tag", "unavailable_after: Wed, 03 Dec 2098 13:09:53 GMT")],
    "/other_bot.jpg": [("X-Robots-Tag", "otherbot: noindex, noai")],
    "/all.jpg": [("X-Robots-Tag", "all, max-snippet: -1")],
    "/tdm.jpg": [("TDM-Reservation", "1"), ("TDM-Policy", "https://example.org/policy.json")],
    "/tdm_0.jpg": [("tdm-reservation", "0")],
    "/as_html.jpg": [("Content-Type", "text/html")],
    "/cookie.jpg": [("Set-Cookie", "track=1; Path=/")],
}
# A body with this Content-Encoding.
ENCODED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "/gzip.jpg": ("gzip", lambda: gzip.compress(pictures.jpeg())),
    "/deflate.jpg": ("deflate", lambda: zlib.compress(pictures.jpeg())),
    "/raw_deflate.jpg": ("deflate", lambda: zlib.compress(pictures.jpeg())[2:-4]),
    "/gzip_bomb.jpg": ("gzip", lambda: gzip.compress(b"\0" * 50_000_000)),
    "/gzip_cut.jpg": ("gzip", lambda: gzip.compress(pictures.jpeg())[:-200]),
    "/gzip_not.jpg": ("gzip", pictures.jpeg),
    "/gzip_twice.jpg": ("gzip, gzip", lambda: gzip.compress(gzip.compress(pictures.jpeg()))),
    "/brotli.jpg": ("br", lambda: b"\x0b\x02\x80"),
}


ODD = {
    "/loris.jpg": _loris,
    "/silent.jpg": _silent,
    "/endless.jpg": _endless,
    "/declared_large.jpg": _declared_large,
    "/redirect": _redirect,
    "/redirect_ok": _redirect_ok,
    "/redirect_file": _redirect_file,
    "/loop": _redirect_loop,
    "/redirect_nowhere": _redirect_nowhere,
    "/redirect_forbidden": _redirect_forbidden,
    "/hang_up.jpg": _hang_up,
    "/busy_once.jpg": _busy_once,
    "/busy_long.jpg": _busy_long,
    "/too_many.jpg": _too_many,
    "/short.jpg": _short,
    "/many_headers.jpg": _many_headers,
    "/long_header.jpg": _long_header,
}


@functools.cache
def _made(make: Callable[[], bytes]) -> bytes:
    return make()


def make_all() -> None:
    """Make every file now; else the seconds that the large ones take count as the server's."""
    for make in [*FILES.values(), *(make for _, make in ENCODED.values())]:
        _made(make)


@contextmanager
def hostile_site(**settings: object) -> Iterator[Site]:
    """A running site on a free port; `settings` are fields of Site."""
    site = Site(**settings)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/{path:.*}", site.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        site.host = f"127.0.0.1:{listener.getsockname()[1]}"
        await web.SockSite(runner, listener).start()
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=20)
        loop.close()


@dataclass
class Canary:
    port: int
    connections: int = 0


@contextmanager
def canary() -> Iterator[Canary]:
    """A port on every address of this machine that counts whoever connects."""
    listener = socket.create_server(("", 0))
    trap = Canary(listener.getsockname()[1])

    def count() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            trap.connections += 1
            connection.close()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield trap
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=20)

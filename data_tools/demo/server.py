"""A local server in place of Wikimedia Commons and its image sites, on 127.0.0.1 with a port for
each.

    with serve([Picture("red square.png", png, "<p>A <b>red</b> square</p>")]) as commons:
        commons.endpoint  # http://127.0.0.1:PORT/w/api.php
        commons.hosts     # ["127.0.0.1:PORT", ...]: the image sites, for crawl.allow_private

It refuses and fails like the real one: 403 without a contact in the User-Agent, 429 above three
requests at a time, maxlag and ratelimited as HTTP 200 with Retry-After, dead and moved image URLs.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

from data_tools.demo.mediawiki import ApiError, MediaWiki, Picture, thumbnail

__all__ = ["ApiFaults", "LocalCommons", "Picture", "Routes", "Scripted", "serve"]

MAX_CONCURRENT = 3
ALLOW_ALL = "User-agent: *\nAllow: /\n"
START_STOP_TIMEOUT_S = 20.0
Handler = Callable[[web.Request], Awaitable[web.Response]]
# Handlers of one port by (HTTP method, path).
Routes = Mapping[tuple[str, str], Handler]


@dataclass(frozen=True)
class Scripted:
    """An answer that is given in place of the next regular one, whatever was asked."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiFaults:
    """Errors of the API. Every n-th request gets the error (0: never), and succeeds when it is sent
    again."""

    maxlag_every: int = 0
    ratelimited_every: int = 0
    retry_after_s: int = 1
    latency_s: float = 0.0


@dataclass
class LocalCommons:
    """The running server: its addresses, and the requests that it got."""

    endpoint: str = ""
    site_hosts: dict[str, str] = field(default_factory=dict)
    scripted: deque[Scripted] = field(default_factory=deque)
    api_requests: list[dict[str, str]] = field(default_factory=list)
    """Parameters of each API request that got a result; refused and scripted ones are not here."""
    refused: list[str] = field(default_factory=list)
    """Why API requests were refused: maxlag, ratelimited, scripted, user-agent, concurrency, or the
    code of an API error."""
    image_requests: list[tuple[str, str]] = field(default_factory=list)
    """(site, path) of each image request."""

    @property
    def hosts(self) -> list[str]:
        return list(self.site_hosts.values())


class _Api:
    """Handles /w/api.php."""

    def __init__(self, wiki: MediaWiki, faults: ApiFaults, commons: LocalCommons) -> None:
        self.wiki, self.faults, self.commons = wiki, faults, commons
        self.running = 0
        self.num_requests = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.num_requests += 1
        number = self.num_requests
        self.running += 1
        try:
            await asyncio.sleep(self.faults.latency_s)
            return self._answer(request, number)
        finally:
            self.running -= 1

    def _answer(self, request: web.Request, number: int) -> web.Response:
        agent = request.headers.get("User-Agent", "")
        if self.commons.scripted:
            scripted = self.commons.scripted.popleft()
            self.commons.refused.append("scripted")
            return web.Response(
                status=scripted.status, text=scripted.body, headers=scripted.headers
            )
        if not re.search(r"@|https?://", agent):
            self.commons.refused.append("user-agent")
            text = "Please set a user-agent and respect our robot policy https://w.wiki/4wJS\n"
            return web.Response(status=403, text=text)
        if self.running > MAX_CONCURRENT:
            self.commons.refused.append("concurrency")
            return web.Response(status=429, text="Too many requests\n", headers=self._retry_after())
        try:
            self._fail_now_and_then(request.query, number)
            answer = self.wiki.answer(request.query)
        except ApiError as error:
            self.commons.refused.append(error.code)
            headers = self._retry_after() if error.code in ("maxlag", "ratelimited") else {}
            body = {"error": {"code": error.code, "info": error.info}, "servedby": "local"}
            return web.json_response(body, headers=headers)
        self.commons.api_requests.append(dict(request.query))
        return web.json_response(answer)

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.faults.retry_after_s)}

    def _fail_now_and_then(self, params: Mapping[str, str], number: int) -> None:
        lag_every, limit_every = self.faults.maxlag_every, self.faults.ratelimited_every
        if lag_every and number % lag_every == 0 and "maxlag" in params:
            raise ApiError("maxlag", "Waiting for a database server: 7.3 seconds lagged.")
        if limit_every and number % limit_every == 0:
            text = "You've exceeded your rate limit. Please wait some time and try again."
            raise ApiError("ratelimited", text)


class _Site:
    """Handles one image site: pictures, thumbnails, robots.txt."""

    def __init__(
        self, name: str, pictures: Sequence[Picture], robots: str, commons: LocalCommons
    ) -> None:
        self.name, self.robots, self.commons = name, robots, commons
        self.by_path = {unquote(picture.path): picture for picture in pictures}

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path
        if path == "/robots.txt":
            return web.Response(text=self.robots)
        self.commons.image_requests.append((self.name, path))
        moved_here = path.startswith("/moved/")
        path = path.removeprefix("/moved")
        small = re.fullmatch(r"/thumb(/.*)/(\d{1,5})px-[^/]*", path)
        picture = self.by_path.get(small.group(1) if small else path)
        if picture is None or picture.served == "missing":
            return web.Response(
                status=404, text="<!DOCTYPE html><title>404</title>", content_type="text/html"
            )
        if picture.served == "moved" and not moved_here:
            return web.Response(status=302, headers={"Location": f"/moved{request.raw_path}"})
        if small:
            return web.Response(
                body=thumbnail(picture.content, int(small.group(2))), content_type="image/png"
            )
        return web.Response(body=picture.content, content_type=picture.media_type)


@contextmanager
def serve(
    pictures: Sequence[Picture],
    *,
    faults: ApiFaults | None = None,
    robots: Mapping[str, str] | None = None,
    ports: Mapping[str, int] | None = None,
    transform_limit: int = 50,
    routes: Routes | None = None,
) -> Iterator[LocalCommons]:
    """Serve `pictures` from a background thread while the block runs.

    `ports` gives fixed ports by name ("api" or a picture's site); the others get free ports.
    `robots` gives a site's robots.txt (default: everything allowed). `routes` are further handlers
    on the API's port. Raises OSError if a fixed port is taken.
    """
    commons = LocalCommons()
    wiki = MediaWiki(pictures, transform_limit)
    api = _Api(wiki, faults or ApiFaults(), commons)
    handlers: dict[str, Routes] = {"api": {("GET", "/w/api.php"): api.handle, **(routes or {})}}
    by_site: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_site.setdefault(picture.site, []).append(picture)
    for site, files in by_site.items():
        handle = _Site(site, files, (robots or {}).get(site, ALLOW_ALL), commons).handle
        handlers[site] = {("GET", "/{path:.*}"): handle}
    sockets = _bound_sockets({name: (ports or {}).get(name, 0) for name in handlers})
    hosts = {name: f"127.0.0.1:{sock.getsockname()[1]}" for name, sock in sockets.items()}
    wiki.api_host = hosts.pop("api")
    wiki.hosts = commons.site_hosts = hosts
    commons.endpoint = f"http://{wiki.api_host}/w/api.php"

    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(
        target=lambda: asyncio.run(_listen(handlers, sockets, ready)),
        name="local-commons",
        daemon=True,
    )
    thread.start()
    loop, stop = ready.result(timeout=START_STOP_TIMEOUT_S)
    try:
        yield commons
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=START_STOP_TIMEOUT_S)


def _bound_sockets(ports: Mapping[str, int]) -> dict[str, socket.socket]:
    sockets: dict[str, socket.socket] = {}
    try:
        for name, port in ports.items():
            sockets[name] = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[name].bind(("127.0.0.1", port))
    except OSError:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


async def _listen(
    handlers: Mapping[str, Routes], sockets: Mapping[str, socket.socket], ready: Future
) -> None:
    stop = asyncio.Event()
    runners = []
    try:
        for name, routes in handlers.items():
            app = web.Application()
            for (method, path), handler in routes.items():
                add = app.router.add_get if method == "GET" else app.router.add_post
                add(path, handler)
            # short, because a keep-alive connection that a client left open would delay the end of
            # the block by a minute
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            runners.append(runner)
            await web.SockSite(runner, sockets[name]).start()
        ready.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
    except BaseException as error:
        if not ready.done():
            ready.set_exception(error)
        raise
    finally:
        for runner in runners:
            await runner.cleanup()

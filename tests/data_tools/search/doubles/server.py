"""The local Commons, with the same pictures as Openverse and as Flickr on the same port.

with serve(pictures) as server:
    server.endpoint            # http://127.0.0.1:PORT/w/api.php
    server.openverse.endpoint  # http://127.0.0.1:PORT/v1/
    server.flickr.endpoint     # http://127.0.0.1:PORT/services/rest/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from data_tools.demo import server as demo_server
from data_tools.demo.mediawiki import Picture
from data_tools.demo.server import ApiFaults, LocalCommons, Routes
from tests.data_tools.search.doubles.flickr import Flickr
from tests.data_tools.search.doubles.openverse import Openverse
from tests.data_tools.search.doubles.replies import ApiLog, Reply


@dataclass
class LocalApis(LocalCommons):
    """The running server: where each API listens, and what it was asked."""

    openverse: ApiLog = field(default_factory=ApiLog)
    flickr: ApiLog = field(default_factory=ApiLog)


@contextmanager
def serve(
    pictures: Sequence[Picture],
    *,
    faults: ApiFaults | None = None,
    ports: Mapping[str, int] | None = None,
    openverse: Openverse | None = None,
    flickr: Flickr | None = None,
) -> Iterator[LocalApis]:
    """As data_tools.demo.server.serve. `openverse` and `flickr` are given where they shall have
    faults; `faults.latency_s` delays their answers too."""
    openverse, flickr = openverse or Openverse(pictures), flickr or Flickr(pictures)
    routes = _Handlers(openverse, flickr, (faults or ApiFaults()).latency_s).routes()
    with demo_server.serve(pictures, faults=faults, ports=ports, routes=routes) as commons:
        host = urlsplit(commons.endpoint).netloc
        openverse.api_host = host
        openverse.hosts = flickr.hosts = commons.site_hosts
        openverse.log.endpoint = f"http://{host}/v1/"
        flickr.log.endpoint = f"http://{host}/services/rest/"
        yield LocalApis(**vars(commons), openverse=openverse.log, flickr=flickr.log)


class _Handlers:
    """HTTP around the two stand-ins, which know only parameters and replies."""

    def __init__(self, openverse: Openverse, flickr: Flickr, latency_s: float) -> None:
        self.openverse, self.flickr, self.latency_s = openverse, flickr, latency_s

    def routes(self) -> Routes:
        return {
            ("GET", "/v1/images/"): self.images,
            ("POST", "/v1/auth_tokens/token/"): self.token,
            ("GET", "/services/rest/"): self.rest,
        }

    async def images(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization", "")
        return await self._respond(
            self.openverse.log, lambda: self.openverse.images(request.query, authorization)
        )

    async def token(self, request: web.Request) -> web.Response:
        posted = await request.post()
        form = {name: value for name, value in posted.items() if isinstance(value, str)}
        return await self._respond(ApiLog(), lambda: self.openverse.token(form))

    async def rest(self, request: web.Request) -> web.Response:
        return await self._respond(self.flickr.log, lambda: self.flickr.answer(request.query))

    async def _respond(self, log: ApiLog, answer: Callable[[], Reply]) -> web.Response:
        await asyncio.sleep(self.latency_s)
        if log.scripted:
            scripted = log.scripted.popleft()
            log.refused.append("scripted")
            return web.Response(
                status=scripted.status, text=scripted.body, headers=scripted.headers
            )
        reply = answer()
        if isinstance(reply.body, str):
            return web.Response(status=reply.status, text=reply.body, headers=reply.headers)
        return web.json_response(reply.body, status=reply.status, headers=reply.headers)

"""The second client, for answers that aiohttp's parser refuses: http.client, by which urllib reads
the web too, in threads.

Only the lines of the head that the guard reads get to http.client, in a spelling that it takes; so
a broken line can't lose a picture, nor the opt-out behind it. Each answer has a connection of its
own, which is closed behind it: bytes whose end is unclear are never taken for another answer. The
addresses are those of the resolver that aiohttp's connector has, and no other is connected to.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from data_tools.crawl.addresses import CheckedResolver
from data_tools.crawl.answer import judge
from data_tools.crawl.body import SPEED_WINDOW_S, check_declared, cut, too_slow
from data_tools.crawl.fetch_error import FetchError
from data_tools.crawl.fetch_request import Answer, FetchLimits, FetchRequest

# As many as img2dataset asks for at a time with default settings. They start when they are needed.
THREADS = 128
# urllib's limit on a line, Chrome's on the whole head; many servers send 130 headers, none 1,000.
MAX_LINE_BYTES = 65_536
MAX_HEAD_BYTES = 262_144
MAX_HEADERS = 1000
_READ_BYTES = 65_536
_KEPT = {
    *(b"content-length", b"transfer-encoding", b"content-encoding", b"content-range"),
    *(b"location", b"retry-after", b"x-robots-tag", b"tdm-reservation", b"tdm-policy"),
}
# Old media servers say ICY; "http/1.1" and "HTTP/2 200" come from proxies.
_STATUS_LINE = re.compile(rb"\s*(?:HTTP(?:/\d(?:\.\d)?)?|ICY)\s+(\d{3})(?:\s+(.*))?", re.I | re.S)
_HEADER = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.S)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]+")


class LenientClient:
    """Asks by http.client: `await client.get(url, request)`."""

    def __init__(
        self, resolver: CheckedResolver, headers: Mapping[str, str], limits: FetchLimits
    ) -> None:
        self._resolver, self._limits = resolver, limits
        self._headers = {**headers, "Connection": "close"}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lenient")
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])

    async def get(self, url: URL, request: FetchRequest) -> Answer | str:
        """The answer, or the address that it redirects to. Raises FetchError, AddressRefused,
        OSError and http.client.HTTPException."""
        found = await self._resolver.resolve(url.host or "", url.port or 0)
        talk = _Talk(url, [each["host"] for each in found], self._limits, request)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, talk.run, self._headers, self._tls)
        finally:
            talk.end()  # also where the URL's deadline has passed and nobody waits any more

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Talk:
    """One request and its answer, in a thread; `end` may be called from another."""

    def __init__(
        self, url: URL, addresses: list[str], limits: FetchLimits, request: FetchRequest
    ) -> None:
        self._url, self._addresses = url, addresses
        self._limits, self._request = limits, request
        self._lock, self._ended = threading.Lock(), False
        self._socket: socket.socket | None = None

    def run(self, headers: Mapping[str, str], tls: ssl.SSLContext) -> Answer | str:
        host, port = self._url.host or "", self._url.port or 0
        is_https = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        connection = kind(host, port)
        connection.response_class = _Response
        connection.sock = self._connected(tls if is_https else None)
        try:
            connection.putrequest("GET", self._url.raw_path_qs, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            return self._answer(connection.getresponse())
        finally:
            connection.close()
            self.end()

    def end(self) -> None:
        """Close the connection, which wakes the thread that reads from it."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                with suppress(OSError, ValueError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()

    def _connected(self, tls: ssl.SSLContext | None) -> socket.socket:
        """A connection to the first of the addresses that takes it."""
        made, wait_s = None, self._limits.connect_timeout_s
        for number, address in enumerate(self._addresses):
            try:
                made = socket.create_connection((address, self._url.port or 0), wait_s)
                break
            except OSError as error:
                if number == len(self._addresses) - 1:
                    raise FetchError("failed:connect", f"{error}", retry_after_s=0.0) from error
        assert made is not None  # the resolver gives an address or raises
        if tls is not None:
            made = tls.wrap_socket(made, server_hostname=self._url.host)
        made.settimeout(None)
        with self._lock:
            self._socket = made
            if self._ended:
                made.close()
                raise ConnectionAbortedError("the URL's deadline passed")
        return made

    def _answer(self, response: http.client.HTTPResponse) -> Answer | str:
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in response.getheaders():
            headers.add(name, value.encode("latin-1").decode("utf-8", "surrogateescape"))
        given = CIMultiDictProxy(headers)
        status, reason = response.status, response.reason
        target = judge(self._url, status, reason, given, self._request)
        return target or Answer(status, reason, given, *self._body(response))

    def _body(self, response: http.client.HTTPResponse) -> tuple[bytes, bool]:
        """The body, and whether it was cut: as body.read_body does."""
        request, slowest = self._request, self._limits.min_bytes_per_s
        if request.whole:
            check_declared(response.length, request.max_bytes, response.status)
        if slowest and self._socket is not None:
            self._socket.settimeout(SPEED_WINDOW_S)
        body, before, since = bytearray(), 0, time.monotonic()
        try:
            while piece := response.read1(_READ_BYTES):
                body += piece
                if len(body) > request.max_bytes:
                    return cut(body, request.max_bytes, request.whole, response.status)
                if time.monotonic() - since > SPEED_WINDOW_S:
                    if len(body) - before < slowest * SPEED_WINDOW_S:
                        raise too_slow(slowest, response.status)
                    before, since = len(body), time.monotonic()
        except TimeoutError:
            raise too_slow(slowest, response.status) from None
        if response.length and not request.is_complete(bytes(body)):
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(body), False


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: object, **kwargs: object) -> None:
        super().__init__(_Reading(sock), *args, **kwargs)  # type: ignore[arg-type]


class _Reading:
    """The socket as http.client reads it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Lines(self._socket.makefile("rb", buffering=0))


class _Lines(io.BufferedReader):
    """The bytes of an answer, with its head in the spelling that http.client takes: a status line
    of HTTP/1.1 and the headers of _KEPT. Raises HTTPException for a head without end, and for
    lengths that contradict each other, which browsers refuse too (RFC 9112, 6.3)."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self._ready: deque[bytes] = deque()
        self._bytes_left, self._headers_left, self._in_body = MAX_HEAD_BYTES, MAX_HEADERS, False

    def readline(self, size: int | None = -1, /) -> bytes:
        if not self._ready and not self._in_body:
            self._read_head()
        return self._ready.popleft() if self._ready else super().readline(size)

    def _read_head(self) -> None:
        first = self._line()
        while first.strip() == b"" and first:
            first = self._line()
        match = _STATUS_LINE.fullmatch(first)
        if match is None:  # http.client says what is wrong with it
            self._in_body = True
            self._ready.append(first)
            return
        fields = self._fields()
        # http.client reads on after 100 alone; 101 is a change of protocol
        is_interim = match[1][:1] == b"1" and match[1] != b"101"
        code = b"100" if is_interim else match[1]
        self._ready.append(b"HTTP/1.1 %s %s\r\n" % (code, _clean(match[2] or b"")))
        if not is_interim:
            self._in_body = True
            self._ready += [b"%s: %s\r\n" % (name, value) for name, value in _framed(fields)]
        self._ready.append(b"\r\n")

    def _fields(self) -> list[tuple[bytes, bytes]]:
        """Name and value of the headers that the guard reads, up to the empty line."""
        fields: list[tuple[bytes, bytes]] = []
        is_kept = False
        while (line := self._line()).strip(b"\r\n"):
            if line[:1] in (b" ", b"\t"):  # the value goes on (RFC 9112, 5.2)
                if is_kept:
                    fields[-1] = (fields[-1][0], fields[-1][1] + line)
                continue
            self._headers_left -= 1
            if self._headers_left < 0:
                raise http.client.HTTPException(f"more than {MAX_HEADERS} headers")
            match = _HEADER.fullmatch(line)
            is_kept = match is not None and match[1].lower() in _KEPT
            if match is not None and is_kept:
                fields.append((match[1].lower(), match[2]))
        return [(name, _clean(value)) for name, value in fields]

    def _line(self) -> bytes:
        line = super().readline(MAX_LINE_BYTES + 1)
        self._bytes_left -= len(line)
        if len(line) > MAX_LINE_BYTES or self._bytes_left < 0:
            raise http.client.HTTPException(
                f"a head of more than {MAX_HEAD_BYTES} bytes, or a line of more than "
                f"{MAX_LINE_BYTES}"
            )
        return line


def _framed(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields with one length at most: chunks go before Content-Length (RFC 9112, 6.3), equal
    lengths are one, and a length that is no number is none."""
    stated = b",".join(value for name, value in fields if name == b"content-length")
    lengths = {int(each) for each in stated.split(b",") if each.strip().isdigit()}
    codings = b",".join(value for name, value in fields if name == b"transfer-encoding")
    framing = (b"content-length", b"transfer-encoding")
    others = [field for field in fields if field[0] not in framing]
    if codings.lower().split(b",")[-1].strip() == b"chunked":
        return [*others, (b"transfer-encoding", b"chunked")]
    if len(lengths) > 1:
        raise http.client.HTTPException(f"Content-Length: {stated.decode('latin-1')}")
    return [*others, *((b"content-length", b"%d" % length) for length in lengths)]


def _clean(value: bytes) -> bytes:
    return _CONTROL.sub(b" ", value).strip()

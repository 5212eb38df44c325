"""HTTP storage whose answers are checked before their bytes are believed.

fsspec's client takes whatever comes for the range it asked for: the whole file from a server that
ignores Range, a login page, a compressed range. Here each of these is an error that says what the
server did, and no more is read than was asked for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractBufferedFile

from data_tools.ground.printable import printable
from pipeline.data.shards.wrong_answer import WrongAnswer

# For one answer. A server that accepts the connection and sends nothing is given up much earlier.
_TIMEOUT = aiohttp.ClientTimeout(total=120.0, sock_connect=15.0, sock_read=30.0)
# Compressed, a range is one of the compressed file.
_PLAIN = {"Accept-Encoding": "identity"}
_BLOCK_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", re.IGNORECASE)


class CheckedHTTP(HTTPFileSystem):
    """A read-only file system; paths are URLs. FileNotFoundError, PermissionError, WrongAnswer and
    other OSErrors name the URL, without its secrets, and what the server did."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sizes: dict[str, int] = {}

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        if start is None or end is None:
            async with self._answer("GET", url, {}) as answer:
                return await answer.read()
        if start >= end:
            return b""
        asked = {"Range": f"bytes={start}-{end - 1}", **_PLAIN}
        async with self._answer("GET", url, asked) as answer:
            size = self._checked_range(answer, url, start, end)
            return await _read_exactly(answer, url, size)

    async def _info(self, url: str, **kwargs: Any) -> dict[str, Any]:
        size = None
        try:
            async with self._answer("HEAD", url, _PLAIN) as answer:
                _refuse_page(answer, url)
                if "Content-Encoding" not in answer.headers:
                    size = answer.content_length
        except (PermissionError, WrongAnswer):
            pass  # signed addresses are for GET alone, and some servers know no HEAD
        if size is None:
            async with self._answer("GET", url, {"Range": "bytes=0-0", **_PLAIN}) as answer:
                self._checked_range(answer, url, 0, 1)
                size = _content_range(answer, url)[2]
        if size is not None:
            self._sizes[url] = size
        return {"name": url, "size": size, "type": "file"}

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_type: str | None = None,
        size: int | None = None,
        **kwargs: Any,
    ) -> AbstractBufferedFile:
        """A file that reads by checked ranges; fsspec's own does not check them."""
        return AbstractBufferedFile(
            self, path, mode, block_size or "default", cache_type=cache_type or "bytes", size=size
        )

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, if its status is a success. Raises OSErrors alone."""
        options = {"timeout": _TIMEOUT, "allow_redirects": True, **self.kwargs}
        headers = {**options.pop("headers", {}), **headers}
        try:
            session = await self.set_session()
            async with session.request(
                method, self.encode_url(url), headers=headers, **options
            ) as answer:
                _refuse_status(answer, url, headers.get("Range"))
                yield answer
        except (aiohttp.ServerTimeoutError, asyncio.TimeoutError) as error:
            raise OSError(f"{_shown(url)} does not answer in time") from error
        except aiohttp.ClientPayloadError as error:
            raise OSError(f"{_shown(url)}: the answer ends before its stated length") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(f"{_shown(url)}: {type(error).__name__}: {error}") from error

    def _checked_range(self, answer: aiohttp.ClientResponse, url: str, start: int, end: int) -> int:
        """The number of bytes that the answer has of start..end. Raises WrongAnswer."""
        asked = f"asked for bytes {start}-{end - 1}"
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise WrongAnswer(
                f"{_shown(url)}: {asked}, the server compresses the range with {encoding}"
            )
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            _refuse_page(answer, url)
            length = answer.content_length
            if answer.status == HTTPStatus.OK and not start and length and length <= end:
                return length  # a small file, whole
            shown = f" of {length} bytes" if length is not None else ""
            raise WrongAnswer(
                f"{_shown(url)}: {asked}, the server ignores Range and sends the whole file{shown} "
                f"({answer.status}). Use one that knows Range, or copy the data set to a disk"
            )
        first, last, total = _content_range(answer, url)
        whole = last == end - 1 or (total is not None and last == total - 1 and last < end)
        if first != start or not whole or (total is not None and last >= total):
            given = answer.headers["Content-Range"]
            raise WrongAnswer(f"{_shown(url)}: {asked}, the server sends {printable(given)!r}")
        known = self._sizes.get(url)
        if known is not None and total is not None and total != known:
            raise WrongAnswer(
                f"{_shown(url)} has {total} bytes by Content-Range and {known} by an earlier answer"
            )
        return last - start + 1


async def _read_exactly(answer: aiohttp.ClientResponse, url: str, size: int) -> bytes:
    """The body, which has to have `size` bytes; nothing is read beyond."""
    parts: list[bytes] = []
    num_read = 0
    while num_read <= size and (block := await answer.content.read(_BLOCK_BYTES)):
        parts.append(block)
        num_read += len(block)
    if num_read > size:
        answer.close()
        raise WrongAnswer(f"{_shown(url)} sends more than the {size} bytes that it announced")
    if num_read < size:
        raise OSError(f"{_shown(url)}: the answer ends after {num_read} of {size} bytes")
    return b"".join(parts)


def _content_range(answer: aiohttp.ClientResponse, url: str) -> tuple[int, int, int | None]:
    """(first byte, last byte, bytes of the file if stated) of a 206. Raises WrongAnswer."""
    given = answer.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(given.strip())
    if found is None or found[1] is None:
        if answer.status == HTTPStatus.OK and answer.content_length:
            return 0, answer.content_length - 1, answer.content_length
        raise WrongAnswer(
            f"{_shown(url)}: the server sends a part ({answer.status}) with Content-Range "
            f"{printable(given)!r}, so it is not known which"
        )
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])


def _refuse_status(answer: aiohttp.ClientResponse, url: str, asked: str | None) -> None:
    status = answer.status
    if status < HTTPStatus.BAD_REQUEST:
        return
    told = f"{_shown(url)}: the server answers {status} {printable(answer.reason or '')}".rstrip()
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise FileNotFoundError(told)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise PermissionError(f"{told}: access is not allowed (any more)")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        given = printable(answer.headers.get("Content-Range", "no Content-Range"))
        raise WrongAnswer(f"{told} to {asked} ({given}): the file is shorter than the index says")
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or status >= 500:
        after = answer.headers.get("Retry-After")
        raise OSError(f"{told}" + (f" (Retry-After: {printable(after)})" if after else ""))
    raise WrongAnswer(told)


def _refuse_page(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.content_type in ("text/html", "application/xhtml+xml"):
        where = "" if str(answer.url) == url else f" at {_shown(str(answer.url))}"
        raise WrongAnswer(
            f"{_shown(url)}: the server answers {answer.status} with an HTML page{where} in place "
            f"of the file: a login, or an error page?"
        )


def _shown(url: str) -> str:
    """The URL without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return printable(urlunsplit((parts.scheme, host, parts.path, "", "")))

"""What an answer means: a redirect, a refusal, or content, whose Content-Encoding is undone.

Answers are read as browsers read them: a Content-Encoding that says nothing ("UTF-8", "none",
"aws-chunked", "gzip" before a body that is none) does not lose a picture, and a picture that comes
with another success than 200 is one.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
import zlib
from collections.abc import Mapping
from urllib.parse import urljoin

import pyarrow as pa
from yarl import URL

from data_tools.crawl.fetch_error import FetchError
from data_tools.crawl.fetch_request import Answer, FetchRequest, Headers

_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 429, 502, 503, 504}
_WHOLE_RANGE = re.compile(r"bytes 0-(\d+)/(\d+|\*)")
_SURROGATE = re.compile("[\udc80-\udcff]")
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
# zlib copies what lies behind the end of a stream, so it gets the body in pieces.
_PIECE = 16_384
# Each member of a gzip file costs as much as 30 kB of its content. bgzip makes one for every 64 kB.
MAX_MEMBERS = 4096


def judge(url: URL, status: int, reason: str, headers: Headers, request: FetchRequest) -> str:
    """The address that the response redirects to, or "" if its body is to be read. Raises
    FetchError if it is not to be used."""
    if status in _REDIRECTS:
        return urljoin(str(url), _location(headers)) or str(url)
    stated = headers.get("Content-Range", "")
    if not 200 <= status < 300 or (status == 206 and stated and not _is_whole(stated)):
        raise http_error(status, reason, headers)
    request.check_headers(headers)
    return ""


async def content_of(answer: Answer, request: FetchRequest) -> bytes:
    """The body without its Content-Encoding. Raises FetchError if the encoding can't be undone, or
    if the status was not 200 and the body is not of the kind that was asked for."""
    stated = ",".join(answer.headers.getall("Content-Encoding", []))
    names = [name.strip().lower() for name in stated.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    content = answer.body
    if names and not request.recognises(content):
        # in a thread, because the event loop serves all other URLs meanwhile
        content = await asyncio.to_thread(_decoded, answer, names, stated, request)
    if answer.status != 200 and not request.recognises(content):
        raise http_error(answer.status, answer.reason, answer.headers)
    return content


def http_error(status: int, reason: str, headers: Mapping[str, str]) -> FetchError:
    retry_after_s = None
    if status in _TRANSIENT:
        retry_after_s = _retry_after(headers.get("Retry-After", ""))
    return FetchError(f"failed:http_{status}", reason, status, retry_after_s)


def _location(headers: Headers) -> str:
    """The header Location; bytes in it that are no UTF-8 (Latin-1, most often) are escaped."""
    location = headers.get("Location", "")
    return _SURROGATE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", location)


def _is_whole(content_range: str) -> bool:
    """Whether a Content-Range is all of the file: "bytes 0-99/100"."""
    match = _WHOLE_RANGE.fullmatch(content_range.strip().lower())
    return match is not None and (match[2] == "*" or int(match[1]) + 1 == int(match[2]))


def _retry_after(value: str) -> float:
    """Seconds from now that a Retry-After header asks for, in either of its forms (RFC 9110,
    10.2.3); 0 if it is absent or unreadable."""
    if value.strip().isdecimal():
        return float(value[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _decoded(answer: Answer, names: list[str], stated: str, request: FetchRequest) -> bytes:
    most = request.max_bytes
    if len(names) > 1 or names[0] not in {*_WINDOW_BITS, "br"}:
        raise FetchError(
            "failed:content_encoding",
            f"'{stated}' was not asked for, and the body is not readable without it",
            answer.status,
        )
    try:
        if names[0] == "br":
            content, at_end = _without_brotli(answer.body, most + 1), True
        else:
            content, at_end = _inflated(answer.body, _WINDOW_BITS[names[0]], most + 1)
    except (zlib.error, OSError) as error:
        raise FetchError("failed:content_encoding", f"{error}", answer.status) from error
    if len(content) > most:
        if request.whole:
            raise FetchError("rejected:too_large", f"more than {most} bytes", answer.status)
        return content[:most]
    if not at_end and not answer.is_cut:
        detail = "the compressed stream is cut off"
        raise FetchError("failed:read", detail, answer.status, retry_after_s=0.0)
    return content


def _inflated(body: bytes, window_bits: int, most: int) -> tuple[bytes, bool]:
    """Up to `most` bytes of what gzip, zlib, or the raw deflate that many servers send as
    "deflate", made `body` from, and whether its end was there. All members of a gzip file count
    (RFC 1952, 2.2); bytes behind the last are left out. Raises zlib.error."""
    out, at, at_end = bytearray(), 0, False
    for number in range(MAX_MEMBERS):
        stream = zlib.decompressobj(window_bits)
        at_end = False
        while not stream.eof and at < len(body) and len(out) < most:
            piece = body[at : at + _PIECE]
            try:
                out += stream.decompress(piece, most - len(out))
            except zlib.error:
                if number or at or window_bits != _ZLIB:
                    raise
                return _inflated(body, -zlib.MAX_WBITS, most)
            at += len(piece) - len(stream.unused_data)
        at_end = stream.eof
        is_over = window_bits != _GZIP or body[at : at + 2] != _GZIP_MAGIC
        if is_over or not at_end or len(out) >= most:
            return bytes(out), at_end
    raise zlib.error(f"more than {MAX_MEMBERS} members")


def _without_brotli(body: bytes, most: int) -> bytes:
    """Up to `most` bytes of what brotli made `body` from. Raises OSError."""
    out = bytearray()
    with pa.CompressedInputStream(pa.py_buffer(body), "brotli") as stream:
        while len(out) < most and (piece := stream.read(min(65_536, most - len(out)))):
            out += piece
    return bytes(out)


def looks_like_text(content: bytes) -> bool:
    """Whether a file that should be text is readable as it is: no compressed stream begins with
    eight printable characters and goes on without a control character."""
    start = content.removeprefix(b"\xef\xbb\xbf")[:8]
    return not start.translate(None, _PRINTABLE) and not _CONTROL.search(content)


_PRINTABLE = bytes([9, 10, 12, 13, *range(32, 127)])
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")

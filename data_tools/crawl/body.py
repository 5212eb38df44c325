"""The body of a response: decompressed, and refused when it is too long or comes too slowly."""

from __future__ import annotations

import asyncio
import zlib

import aiohttp

from data_tools.crawl.fetch_error import FetchError

# Bytes are counted over windows of this length, as with curl's --speed-time.
SPEED_WINDOW_S = 5.0


async def read_body(
    response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_s: float, whole: bool = True
) -> bytes:
    """The decompressed body. Neither its compressed nor its decompressed form may be longer than
    `max_bytes`.

    A longer body raises FetchError "rejected:too_large", or is cut there with `whole` = False. A
    window of SPEED_WINDOW_S with fewer than `min_bytes_per_s` raises "failed:timeout".
    """
    declared = response.content_length
    if whole and declared is not None and declared > max_bytes:
        raise FetchError(
            "rejected:too_large", f"{declared} bytes declared, {max_bytes} allowed", response.status
        )
    inflater = _inflater(response)
    body, received = bytearray(), 0
    speed = _SpeedLimit(response, min_bytes_per_s)
    try:
        async for chunk in response.content.iter_any():
            received += len(chunk)
            speed.received = received
            room = max_bytes + 1 - len(body)
            body += chunk[:room] if inflater is None else inflater.inflate(chunk, room)
            if max(received, len(body)) > max_bytes:
                if whole:
                    raise FetchError(
                        "rejected:too_large", f"more than {max_bytes} bytes", response.status
                    )
                return bytes(body[:max_bytes])
    except (aiohttp.ClientError, OSError):
        if speed.exceeded:
            raise FetchError("failed:timeout", speed.detail, response.status) from None
        raise
    finally:
        speed.stop()
    if inflater is not None and not inflater.at_end:
        raise FetchError(
            "failed:read", "the compressed stream is cut off", response.status, retry_after_s=0.0
        )
    return bytes(body)


class _SpeedLimit:
    """Closes the response if a window of SPEED_WINDOW_S brought fewer bytes than the limit."""

    def __init__(self, response: aiohttp.ClientResponse, min_bytes_per_s: float) -> None:
        self._response, self._wanted = response, min_bytes_per_s * SPEED_WINDOW_S
        self._loop = asyncio.get_running_loop()
        self._before, self.received, self.exceeded = 0, 0, False
        self.detail = f"slower than {min_bytes_per_s:g} bytes/s for {SPEED_WINDOW_S:g} s"
        self._timer = self._loop.call_later(SPEED_WINDOW_S, self._check_window)

    def _check_window(self) -> None:
        if self.received - self._before < self._wanted:
            self.exceeded = True
            self._response.close()
            return
        self._before = self.received
        self._timer = self._loop.call_later(SPEED_WINDOW_S, self._check_window)

    def stop(self) -> None:
        self._timer.cancel()


class _Inflater:
    """Decompresses gzip, zlib, and the raw deflate that many servers send as "deflate"."""

    def __init__(self, window_bits: int, status: int) -> None:
        self._window_bits, self._status = window_bits, status
        self._stream = zlib.decompressobj(window_bits)
        self._started = False

    def inflate(self, chunk: bytes, most: int) -> bytes:
        try:
            piece = self._stream.decompress(chunk, most)
        except zlib.error as error:
            if self._started or self._window_bits != zlib.MAX_WBITS:
                raise FetchError("failed:content_encoding", f"{error}", self._status) from error
            self._stream, self._window_bits = zlib.decompressobj(-zlib.MAX_WBITS), -zlib.MAX_WBITS
            return self.inflate(chunk, most)
        self._started = True
        return piece

    @property
    def at_end(self) -> bool:
        return self._stream.eof


_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


def _inflater(response: aiohttp.ClientResponse) -> _Inflater | None:
    """The decompressor of the response, None for a plain body. Raises FetchError for encodings that
    were not asked for: brotli, zstd, one inside another."""
    stated = ",".join(response.headers.getall("Content-Encoding", []))
    encodings = [name.strip().lower() for name in stated.split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in _WINDOW_BITS:
        raise FetchError(
            "failed:content_encoding", f"'{stated}' was not asked for", response.status
        )
    return _Inflater(_WINDOW_BITS[encodings[0]], response.status)

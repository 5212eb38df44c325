"""The body of a response of aiohttp, refused when it is too long or comes too slowly."""

from __future__ import annotations

import asyncio

import aiohttp

from data_tools.crawl.fetch_error import FetchError

# Bytes are counted over windows of this length, as with curl's --speed-time.
SPEED_WINDOW_S = 5.0


async def read_body(
    response: aiohttp.ClientResponse, max_bytes: int, min_bytes_per_s: float, whole: bool = True
) -> tuple[bytes, bool]:
    """The body as it was sent, and whether it was cut.

    A body of more than `max_bytes` raises FetchError "rejected:too_large", or is cut there with
    `whole` = False. A window of SPEED_WINDOW_S with fewer than `min_bytes_per_s` raises
    "failed:timeout".
    """
    if whole:
        check_declared(response.content_length, max_bytes, response.status)
    body = bytearray()
    speed = _SpeedLimit(response, min_bytes_per_s)
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            speed.received = len(body)
            if len(body) > max_bytes:
                return cut(body, max_bytes, whole, response.status)
    except (aiohttp.ClientError, OSError):
        if speed.exceeded:
            raise too_slow(min_bytes_per_s, response.status) from None
        raise
    finally:
        speed.stop()
    return bytes(body), False


def check_declared(declared: int | None, max_bytes: int, status: int) -> None:
    """Raise FetchError if the response says that it is too long."""
    if declared is not None and declared > max_bytes:
        detail = f"{declared} bytes declared, {max_bytes} allowed"
        raise FetchError("rejected:too_large", detail, status)


def cut(body: bytearray, max_bytes: int, whole: bool, status: int) -> tuple[bytes, bool]:
    """The beginning of a body that is too long; with `whole`, FetchError."""
    if whole:
        raise FetchError("rejected:too_large", f"more than {max_bytes} bytes", status)
    return bytes(body[:max_bytes]), True


def too_slow(min_bytes_per_s: float, status: int) -> FetchError:
    detail = f"slower than {min_bytes_per_s:g} bytes/s for {SPEED_WINDOW_S:g} s"
    return FetchError("failed:timeout", detail, status)


class _SpeedLimit:
    """Closes the response if a window of SPEED_WINDOW_S brought fewer bytes than the limit."""

    def __init__(self, response: aiohttp.ClientResponse, min_bytes_per_s: float) -> None:
        self._response, self._wanted = response, min_bytes_per_s * SPEED_WINDOW_S
        self._loop = asyncio.get_running_loop()
        self._before, self.received, self.exceeded = 0, 0, False
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

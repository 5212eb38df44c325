"""The lenient client keeps what the strict one keeps: the checked address, the deadline, the lowest
speed, and no thread that waits for a server for ever."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from data_tools.crawl import body, lenient
from data_tools.crawl.addresses import AddressPolicy, CheckedResolver
from data_tools.crawl.fetch import Fetcher
from data_tools.crawl.fetch_error import Budget, FetchError
from data_tools.crawl.fetch_request import FetchLimits, FetchRequest
from tests.data_tools.crawl.hostile_server import canary
from tests.data_tools.crawl.odd_answers import PICTURE, ok
from tests.data_tools.crawl.raw_server import raw_site
from tests.data_tools.crawl.test_fetch import Rebinding

ODD = b"HTTP/1.1 200 OK\r\nA : b\r\n"
LIMITS = FetchLimits(8, 0.0, connect_timeout_s=2.0, min_bytes_per_s=0)


def ask(host: str, path: str, seconds: float = 5, limits: FetchLimits = LIMITS) -> str:
    """The status of one URL, or "fetched"."""

    async def one() -> str:
        async with Fetcher(AddressPolicy([host]), "test", limits) as fetcher:
            try:
                await fetcher.get(f"http://{host}{path}", Budget(seconds), FetchRequest(100_000))
            except FetchError as error:
                return error.status
            return "fetched"

    return asyncio.run(one())


def none_is_left(seconds: float = 10) -> bool:
    """Whether the threads of the lenient client end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(thread.name.startswith("lenient") for thread in threading.enumerate()):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (ODD, b"X-A: b\r\n"),
        (ODD + b"\r\n", b""),
        (ODD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (ODD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-T: 1\r\n"),
    ],
    ids=["head", "silence", "chunks", "trailer"],
)
def test_the_deadline_of_the_url_ends_it(begin, drip):
    with raw_site({"/a": begin}, {"/a": drip}) as host:
        assert ask(host, "/a", seconds=1.0) == "failed:timeout"
    assert none_is_left()


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch):
    monkeypatch.setattr(body, "SPEED_WINDOW_S", 0.3)
    monkeypatch.setattr(lenient, "SPEED_WINDOW_S", 0.3)
    slow = FetchLimits(8, 0.0, connect_timeout_s=2.0, min_bytes_per_s=1000)
    with raw_site({"/a": ODD + b"\r\n"}, {"/a": b"x"}) as host:
        assert ask(host, "/a", seconds=60, limits=slow) == "failed:timeout"
    assert none_is_left()


def test_the_address_is_checked_and_no_other_is_connected_to():
    """A name that is public when it is first looked up, and the loopback from then on."""
    names = Rebinding()
    with canary() as trap:

        async def twice() -> list[str]:
            resolver = CheckedResolver(AddressPolicy([]))
            resolver._system = names  # type: ignore[assignment]
            limits = FetchLimits(8, 0.0, connect_timeout_s=0.3, min_bytes_per_s=0)
            client = lenient.LenientClient(resolver, {}, limits)
            kinds = []
            for _ in range(2):
                with pytest.raises(Exception) as raised:
                    await client.get(lenient.URL(f"http://a.example:{trap.port}/"), ANYTHING)
                kinds.append(getattr(raised.value, "status", type(raised.value).__name__))
            client.close()
            return kinds

        assert asyncio.run(twice()) == ["failed:connect", "AddressRefused"]
        assert trap.connections == 0 and names.lookups == 2


ANYTHING = FetchRequest(1000)


def test_what_is_asked_is_the_same_as_before_and_the_connection_is_closed():
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=_serve_two, args=(listener, seen), daemon=True).start()
        assert ask(host, "/a%20b.jpg?c=%C3%A9") == "fetched"
    strict, second = (
        dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        for head in seen
    )
    assert seen[0].split(b"\r\n")[0] == seen[1].split(b"\r\n")[0]
    assert second.pop(b"connection") == b"close"
    assert {name: strict[name] for name in second} == second
    assert {b"host", b"user-agent", b"accept", b"accept-encoding"} == set(second)


def _serve_two(listener: socket.socket, seen: list[bytes]) -> None:
    for _ in range(2):
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65_536))
            connection.sendall(ok(b"A : b", body=PICTURE))

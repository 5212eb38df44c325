"""A name that is looked up twice and answers differently (DNS rebinding)."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from data_tools.crawl.addresses import AddressPolicy, CheckedResolver
from data_tools.crawl.fetch import Fetcher, FetchLimits, FetchRequest, parse_url
from data_tools.crawl.fetch_error import Budget, FetchError
from tests.data_tools.crawl.hostile_server import canary


class Rebinding:
    """The system's resolver: a public address at first, then the loopback."""

    def __init__(self) -> None:
        self.lookups = 0

    async def resolve(self, host, port, family):
        self.lookups += 1
        address = "93.184.216.34" if self.lookups == 1 else "127.0.0.1"
        answer = {"hostname": host, "host": address, "port": port, "family": family}
        return [{**answer, "proto": 0, "flags": 0}]

    async def close(self):
        pass


def fetch_twice(port: int, names: Rebinding, forget: bool) -> list[str]:
    async def ask() -> list[str]:
        limits = FetchLimits(4, 0.0, connect_timeout_s=0.3, min_bytes_per_s=0)
        async with Fetcher(AddressPolicy([]), "test", limits) as fetcher:
            connector = fetcher._session.connector
            assert isinstance(connector, aiohttp.TCPConnector)
            assert isinstance(connector._resolver, CheckedResolver)
            connector._resolver._system = names  # type: ignore[assignment]
            statuses = []
            for _ in range(2):
                try:
                    await fetcher.get(f"http://a.example:{port}/", Budget(5), FetchRequest(1000))
                except FetchError as error:
                    statuses.append(error.status)
                if forget:
                    connector.clear_dns_cache()
            return statuses

    return asyncio.run(ask())


def test_the_address_that_was_checked_is_the_one_that_is_asked():
    names = Rebinding()
    with canary() as trap:
        assert fetch_twice(trap.port, names, forget=False) == ["failed:connect"] * 2
        assert names.lookups == 1, "pinned"
        assert trap.connections == 0


def test_a_later_answer_is_checked_like_the_first():
    names = Rebinding()
    with canary() as trap:
        statuses = fetch_twice(trap.port, names, forget=True)
        assert statuses == ["failed:connect", "rejected:private_address"]
        assert names.lookups == 2 and trap.connections == 0


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://a.example/caf\u00e9 1.jpg", "http://a.example/caf%C3%A9%201.jpg"),
        ("HTTP://A.Example:80/x?b=2&a=1#top", "http://a.example/x?b=2&a=1"),
        ("https://b\u00fccher.example/\u00e4", "https://xn--bcher-kva.example/%C3%A4"),
        ("http://user:secret@a.example/", "http://a.example/"),
        (" http://a.example/a%20b ", "http://a.example/a%20b"),
    ],
)
def test_canonical_urls(url, canonical):
    assert str(parse_url(url)) == canonical

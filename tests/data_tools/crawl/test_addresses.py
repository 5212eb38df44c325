from __future__ import annotations

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.crawl.addresses import (
    AddressPolicy,
    AddressRefused,
    CheckedResolver,
    is_public,
)

REFUSED = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",  # carrier-grade NAT; Alibaba's metadata server is 100.100.100.200
    "100.100.100.200",
    "169.254.169.254",  # metadata of AWS, Google, Azure
    "168.63.129.16",  # Azure's host agent
    "192.0.0.192",  # Oracle's metadata
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of AWS over IPv6
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "64:ff9b::a00:1",  # NAT64 of 10.0.0.1
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",  # NAT64 of local choice
]


@pytest.mark.parametrize("address", REFUSED)
def test_refused(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address):
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_wrapping_in_ipv6_changes_nothing_for_the_worse(address):
    number = int(address)
    wrapped = [
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
    ]
    if not is_public(address):
        assert not any(is_public(each) for each in wrapped)


def test_an_allowed_pair_is_exactly_that_pair():
    policy = AddressPolicy(["127.0.0.1:8080", "[::1]:90", "Images.Internal:443"])
    assert policy.allows("127.0.0.1", 8080, "127.0.0.1")
    assert policy.allows("::1", 90, "::1")
    assert policy.allows("images.internal", 443, "10.0.0.7")
    assert not policy.allows("127.0.0.1", 8081, "127.0.0.1")
    assert not policy.allows("localhost", 8080, "127.0.0.1")
    assert not policy.allows("other.internal", 443, "10.0.0.7")


class Names:
    """The system's resolver, answering from a table."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host, port, family):
        return [{"hostname": host, "host": a, "port": port} for a in self.addresses]


def resolve(*addresses: str, allow_private: tuple[str, ...] = ()) -> list[str]:
    async def ask() -> list[str]:
        resolver = CheckedResolver(AddressPolicy(allow_private))
        resolver._system = Names(*addresses)  # type: ignore[assignment]
        return [answer["host"] for answer in await resolver.resolve("a.example", 80)]

    return asyncio.run(ask())


def test_only_public_answers_are_connected_to():
    """A name with one public and one private address (rebinding) gives the public one only."""
    assert resolve("93.184.216.34", "127.0.0.1") == ["93.184.216.34"]
    with pytest.raises(AddressRefused, match="a.example:80 resolves to 10.0.0.1, 127.0.0.1"):
        resolve("127.0.0.1", "10.0.0.1")
    assert resolve("10.0.0.1", allow_private=("a.example:80",)) == ["10.0.0.1"]


def test_the_systems_own_names_are_checked():
    async def ask() -> None:
        await CheckedResolver(AddressPolicy([])).resolve("localhost", 80, socket.AF_UNSPEC)

    with pytest.raises(AddressRefused):
        asyncio.run(ask())

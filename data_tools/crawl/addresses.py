"""Which addresses may be connected to: the public internet, and the hosts that the job names.

A crawler that follows links from strangers can be sent to services of its own machine or cluster,
or to the cloud's metadata server (server-side request forgery). To check the host's name before the
request is not enough: it may resolve to another address a moment later. So the check is in the
resolver, and the connection is made to the address that was checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses that `is_global` lets pass in some or all versions of Python.
_ALSO_REFUSED = [
    # Azure's host agent gives out machine secrets at this address, which no registry marks:
    # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    ipaddress.ip_network("168.63.129.16/32"),
    # IETF protocol assignments; 192.0.0.192 is Oracle's metadata server
    ipaddress.ip_network("192.0.0.0/24"),
    # the range for NAT64 prefixes that a network chooses itself (RFC 8215)
    ipaddress.ip_network("64:ff9b:1::/48"),
]
# RFC 6052: a NAT64 gateway turns the last 32 bits into the IPv4 address it connects to.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """No address of the host may be connected to; the message names host, port and addresses."""


def is_public(address: IPAddress) -> bool:
    """False for private, loopback, link-local, multicast, unspecified, reserved and metadata
    addresses, also if they are wrapped in IPv6 (mapped, 6to4, Teredo, NAT64)."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(inner) for inner in wrapped):
            return False
        if address.ipv4_mapped is not None:
            return True
        if address.is_site_local:
            return False
    if any(address in network for network in _ALSO_REFUSED):
        return False
    return address.is_global and not address.is_multicast


class AddressPolicy:
    """Decides which addresses may be connected to. `allow_private` lists "host:port" pairs that are
    allowed whatever their address is."""

    def __init__(self, allow_private: Iterable[str]) -> None:
        self._allowed = set()
        for entry in allow_private:
            host, _, port = entry.rpartition(":")
            self._allowed.add((host.strip("[]").lower(), int(port)))

    def allows(self, host: str, port: int, address: str) -> bool:
        """Whether a connection to `address`, which is one of `host`, is allowed."""
        if (host.strip("[]").lower(), port) in self._allowed:
            return True
        return is_public(ipaddress.ip_address(address.partition("%")[0]))

    def check_literal(self, host: str, port: int) -> None:
        """Raise AddressRefused if `host` is itself an address that is not allowed: aiohttp asks no
        resolver about it."""
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return
        if not self.allows(host, port, host):
            raise AddressRefused(f"{host}:{port} is not a public address")


class CheckedResolver(AbstractResolver):
    """The system's resolver without the addresses that the policy refuses."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await self._system.resolve(host, port, family)
        allowed = [a for a in answers if self._policy.allows(host, port, a["host"])]
        if not allowed:
            addresses = ", ".join(sorted({a["host"] for a in answers}))
            raise AddressRefused(f"{host}:{port} resolves to {addresses}, not a public address")
        return allowed

    async def close(self) -> None:
        await self._system.close()

"""Chooses the network interface of gloo's process groups where a node's name resolves to loopback.

Gloo listens at the address that the node's own host name resolves to. Debian and Ubuntu write
127.0.1.1 for it into /etc/hosts: ranks then send each other a loopback address, which the ranks of
other nodes cannot reach. NCCL ignores loopback by itself, so a run on GPUs would start and then
fail at its first gloo group.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import torch.distributed as dist

VARIABLE = "GLOO_SOCKET_IFNAME"


def choose_gloo_interface(store: dist.Store, world_size: int, master: str) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface that leads to the other nodes, if it is not set,
    there are other nodes, and this node's name resolves to loopback. Collective over `store`; call
    it before any process group exists.

    A node takes the interface of its route to `master`, the node of rank 0. On that node `master`
    may itself resolve to loopback: it then takes the route to an address that another node has
    published in the store.

    Raises torch.distributed.DistStoreError when a rank does not arrive within the store's timeout.
    """
    address = _own_address_towards(master)
    if not _is_loopback(address):
        store.set("gloo/another_node", address)
    if store.add("gloo/arrived", 1) == world_size:
        store.set("gloo/all_arrived", "")
    store.wait(["gloo/all_arrived"])
    if VARIABLE in os.environ or not _is_loopback(socket.gethostname()):
        return
    if _is_loopback(address):
        if not store.check(["gloo/another_node"]):
            return  # all ranks are on one node
        address = _own_address_towards(store.get("gloo/another_node").decode())
    interface = _interface_of(address)
    if interface is not None:
        os.environ[VARIABLE] = interface


def _own_address_towards(host: str) -> str:
    """The address that this node sends from to reach `host`; loopback where there is no route.
    Connecting a datagram socket sends nothing."""
    try:
        targets = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:  # the store was reached all the same: torchrun gives it another address
        targets = []
    for family, _, _, _, target in targets:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(target)
            except OSError:  # a name server gives an IPv6 address, but this network has no IPv6
                continue
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def _is_loopback(host: str) -> bool:
    """Whether an address, or one that a name resolves to, is loopback. Gloo treats a name that does
    not resolve as loopback."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return True
    addresses = [str(sockaddr[0]).split("%")[0] for *_, sockaddr in found]
    return any(ipaddress.ip_address(address).is_loopback for address in addresses)


def _interface_of(address: str) -> str | None:
    for name, known in psutil.net_if_addrs().items():
        if address in (entry.address.split("%")[0] for entry in known):
            return name
    return None

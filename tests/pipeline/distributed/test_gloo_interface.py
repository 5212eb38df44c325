"""Gloo between two nodes: network namespaces of this machine with a cable between them, a host name
each, and /etc/hosts as Debian writes it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.distributed.gloo_interface import VARIABLE, choose_gloo_interface

ROOT = Path(__file__).parents[3]
# user, network, mount and host name namespaces of their own
NODE = ["unshare", "--map-root-user", "--net", "--mount", "--uts"]
# arguments: the command of a rank. The inner shell is node B.
NODES = """
set -e
hostname node-a
printf '127.0.0.1 localhost\\n127.0.1.1 node-a\\n10.9.0.2 node-b\\n' > hosts.a
printf '127.0.0.1 localhost\\n127.0.1.1 node-b\\n10.9.0.1 node-a\\n' > hosts.b
mount --bind hosts.a /etc/hosts
ip link set lo up
unshare --net --mount --uts bash -c '
    hostname node-b
    mount --bind hosts.b /etc/hosts
    ip link set lo up
    touch ready
    until ip link show cable_b > shown 2>&1; do sleep 0.1; done
    ip addr add 10.9.0.2/24 dev cable_b
    ip link set cable_b up
    RANK=1 "$@"' node-b "$@" &
until [ -e ready ]; do sleep 0.1; done
ip link add name cable_a type veth peer name cable_b
ip link set cable_b netns $!
ip addr add 10.9.0.1/24 dev cable_a
ip link set cable_a up
RANK=0 "$@"
wait $!
"""
RANK = """
import os, socket
import torch, torch.distributed as dist
from pipeline.distributed.world import init_distributed
world = init_distributed(0.5, 1)
total = torch.ones(1)
dist.all_reduce(total)
known_as = socket.gethostbyname(socket.gethostname())
chosen = os.environ["GLOO_SOCKET_IFNAME"]
print(f"rank {world.rank}, {known_as}: {total.item()} over {chosen}\\n", end="")
dist.destroy_process_group()
"""


def on_two_nodes(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "node-a", "MASTER_PORT": "29511"}
    return subprocess.run(
        [*NODE, "bash", "-c", NODES, "nodes", sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_nodes_that_know_their_own_name_as_loopback(tmp_path):
    """Without the choice, rank 1 is refused at 127.0.1.1 until the timeout."""
    cable = "ip link add name cable_a type veth peer name cable_b"
    if shutil.which("unshare") is None or subprocess.run([*NODE, "bash", "-c", cable]).returncode:
        pytest.skip("this system gives a user no network namespaces, which make two nodes of one")
    ended = on_two_nodes(RANK, tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = sorted(filter(None, ended.stdout.splitlines()))
    assert lines == [
        "rank 0, 127.0.1.1: 2.0 over cable_a",
        "rank 1, 127.0.1.1: 2.0 over cable_b",
    ]


def test_one_node_stays_as_it_is(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    choose_gloo_interface(dist.HashStore(), world_size=1, master="127.0.0.1")
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("master", ["no-such-host.invalid", "2001:db8::1"])
def test_a_way_that_is_not_found_ends_nothing(monkeypatch, master):
    def no_network(probe: socket.socket, target: tuple) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.delenv(VARIABLE, raising=False)
    choose_gloo_interface(dist.HashStore(), world_size=1, master=master)
    assert VARIABLE not in os.environ


def test_what_a_user_chose_stays_as_it_is(monkeypatch):
    monkeypatch.setenv(VARIABLE, "eth7")
    store = dist.HashStore()
    store.set("gloo/another_node", "127.0.0.1")  # by way of which "lo" would be chosen
    choose_gloo_interface(store, world_size=1, master="127.0.0.1")
    assert os.environ[VARIABLE] == "eth7"

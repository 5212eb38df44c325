"""The web of the crawl benchmark, in a process of its own: 116 kB JPEGs, slow-loris, bombs, dead
hosts, all on 127.0.0.1.

    python -m tests.benchmarks.crawl_web NUM_DEAD_HOSTS

prints {"host": ..., "dead": [...]} and serves until stdin ends. /i/N.jpg is one of 32 JPEGs of
800 x 600, /loris/N sends a byte every two seconds, /bomb/N is a PNG of 12,000 x 12,000 or 100 MB of
zeros in gzip. Half of the dead hosts refuse connections, half never answer.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

NUM_IMAGES = 32
LORIS_PAUSE_S = 2.0


@dataclass(frozen=True)
class Web:
    host: str
    dead: list[str]


def photo(number: int, width: int = 800, height: int = 600) -> bytes:
    """Smoothed noise over a gradient; at quality 90 about 116 kB, as the web's photos of that size
    have."""
    random = np.random.default_rng(number)
    noise = cv2.GaussianBlur(random.normal(0, 1, (height, width, 3)), (0, 0), 1.6)
    coarse = cv2.resize(random.normal(0, 1, (12, 16, 3)), (width, height), interpolation=3)
    image = 128 + 60 * coarse / coarse.std() + 8.5 * noise / noise.std()
    content = cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), [1, 90])[1]
    return bytes(content.tobytes())


def _bombs() -> list[bytes]:
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"\0" * (12_000 * 3 + 1) * 12_000)),
        (b"IEND", b""),
    ):
        png += (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )
    return [_answer(png), _answer(gzip.compress(b"\0" * 100_000_000), "gzip")]


def _answer(body: bytes, encoding: str = "identity") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Encoding: {encoding}\r\n\r\n"
    return head.encode() + body


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Server(asyncio.Protocol):
    """As little of HTTP as serves: it shares two cores with what is measured."""

    images: list[bytes] = []
    bombs: list[bytes] = []
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1].decode()
        kind, _, name = path[1:].partition("/")
        if kind == "i":
            self.transport.write(self.images[int(name.split(".")[0]) % len(self.images)])
        elif kind == "bomb":
            self.transport.write(self.bombs[int(name) % len(self.bombs)])
        elif kind == "loris":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            self._drip()
        else:
            self.transport.write(NOT_FOUND)

    def _drip(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"x")
            asyncio.get_running_loop().call_later(LORIS_PAUSE_S, self._drip)


def _dead_hosts(count: int) -> tuple[list[str], list[socket.socket]]:
    """Ports that refuse, and ports whose queue is full, so that the kernel drops who knocks."""
    names, keep = [], []
    for number in range(count):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        names.append(f"127.0.0.1:{listener.getsockname()[1]}")
        if number % 2:
            listener.listen(0)
            filler = socket.create_connection(listener.getsockname())
            keep.append(filler)
        keep.append(listener)  # bound and not listening: it refuses, and nobody else gets it
    return names, keep


async def _serve(num_dead: int) -> None:
    Server.images = [_answer(photo(number)) for number in range(NUM_IMAGES)]
    Server.bombs = _bombs()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=1024)
    dead, keep = _dead_hosts(num_dead)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(json.dumps({"host": host, "dead": dead}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    del keep


@contextmanager
def running_web(num_dead_hosts: int) -> Iterator[Web]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.crawl_web", str(num_dead_hosts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Web(**json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(timeout=20)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))

"""An HTTP server of a folder that can be told to answer wrongly."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = b"<!doctype html><html><title>Sign in</title></html>"


class Store(ThreadingHTTPServer):
    """`faulty`: what the server does with the files whose names end in `suffix`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faulty = ""
        self.suffix = ".tar"
        self.num_sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has seen enough hangs up: that is no error."""


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    store = Store(folder)
    thread = threading.Thread(target=store.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        fault = self.server.faulty if self.path.endswith(self.server.suffix) else ""
        if fault == "login redirect":
            return self._send(302, b"", Location="/sign-in")
        if self.path == "/sign-in" or fault == "login":
            return self._send(200, PAGE, **{"Content-Type": "text/html; charset=utf-8"})
        if fault.isdecimal():
            return self._send(int(fault), b"no", **{"Retry-After": "7"})
        if self.command == "HEAD" and fault == "no head":
            return self._send(405, b"")
        if not path.is_file():
            return self._send(404, PAGE, **{"Content-Type": "text/html"})
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or self.command == "HEAD" or fault == "ignores range":
            return self._send(200, content)
        self._range(content, int(asked[1]), min(int(asked[2]) + 1, len(content)), fault)

    def _range(self, content: bytes, start: int, stop: int, fault: str) -> None:
        total = len(content)
        shifts = {
            "other range": (512, 512),
            "longer range": (0, 700),
            "shorter range": (0, -((stop - start) // 2)),
        }
        first, last = shifts.get(fault, (0, 0))
        start, stop = start + first, min(stop + last, total)
        body = content[start:stop]
        totals = {"wrong total": total * 3, "total below": stop - 1}
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{totals.get(fault, total)}"}
        if fault == "no content range":
            headers = {}
        elif fault == "odd content range":
            headers["Content-Range"] = "pages 1-2/3"
        elif fault == "gzip":
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        if fault == "short body":
            self._send(206, body[: len(body) // 2], len(body), **headers)
        elif fault == "long body":
            self._chunked(body + bytes(1 << 16), headers)
        else:
            self._send(206, body, **headers)

    def _send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(body), 1 << 16):
                self.server.num_sent += self.wfile.write(body[start : start + (1 << 16)])
        if length is not None:
            self.close_connection = True

    def _chunked(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(206)
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

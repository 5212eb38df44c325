"""A server whose answers the test gives: `reply(params, headers) -> (status, body, headers)`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any, dict[str, str]]
Reply = Callable[[dict[str, str], dict[str, str]], Answer]


@dataclass
class JsonServer:
    endpoint: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Parameters of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def answering(reply: Reply) -> Iterator[JsonServer]:
    """A string as body goes out as it is, anything else as JSON."""
    server = JsonServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            params = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            server.paths.append(urlsplit(self.path).path)
            server.requests.append(params)
            server.headers.append({name.lower(): text for name, text in self.headers.items()})
            status, body, headers = reply(params, server.headers[-1])
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, text in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *values: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.endpoint = f"http://127.0.0.1:{listener.server_address[1]}/"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join(timeout=10)

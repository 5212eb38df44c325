"""As much of a W&B server as `wandb sync` of a run talks to, on this machine."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"
SUMMARY = "wandb-summary.json"


class Server(ThreadingHTTPServer):
    """Keeps one run: lines of streamed files by their offset, which a second upload at the same
    offset replaces, and uploaded files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.streams: dict[str, dict[int, str]] = {}
        self.uploads: dict[str, bytes] = {}
        self.config: dict[str, Any] = {}
        self.run_ids: list[str] = []
        self.lock = threading.Lock()

    @property
    def history(self) -> list[dict[str, Any]]:
        lines = self.streams.get(HISTORY, {})
        assert sorted(lines) == list(range(len(lines)))
        return [json.loads(lines[number]) for number in range(len(lines))]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            bucket = self._bucket() if self.run_ids else None
            return {"model": {"id": "p", "name": "p", "entity": _ENTITY, "bucket": bucket}}
        if operation == "UpsertBucket":
            inserted = not self.run_ids
            self.run_ids.append(variables["name"])
            if variables["config"]:
                told = json.loads(variables["config"])
                self.config = {name: entry["value"] for name, entry in told.items()}
            project = {"id": "p", "name": variables["project"], "entity": _ENTITY}
            bucket = self._bucket() | {"project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.address}/upload/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self) -> dict[str, Any]:
        history = self.history
        return {
            "id": "r",
            "name": self.run_ids[-1],
            "displayName": "run",
            "summaryMetrics": self.streams.get(SUMMARY, {}).get(0, "{}"),
            "config": "{}",
            # without "t" a run counts as one that was made and never started
            "wandbConfig": '{"t": 1}',
            "tags": [],
            "logLineCount": 0,
            "eventsLineCount": len(self.streams.get(EVENTS, {})),
            "eventsTail": "[]",
            "historyLineCount": len(history),
            "historyTail": json.dumps([json.dumps(line) for line in history[-1:]]),
        }


_ENTITY = {"id": "e", "name": "team"}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server.lock:
            answer = self._answer(body)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST

    def _answer(self, body: bytes) -> dict[str, Any]:
        if self.path == "/graphql":
            asked = json.loads(body)
            return {"data": self.server.answer(asked["operationName"], asked["variables"])}
        if self.path.startswith("/upload/"):
            self.server.uploads[self.path.removeprefix("/upload/")] = body
        elif self.path.endswith("/file_stream"):
            for name, part in (json.loads(body).get("files") or {}).items():
                stream = self.server.streams.setdefault(name, {})
                for number, line in enumerate(part["content"], start=part["offset"]):
                    stream[number] = line
        return {}


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)

"""Reads the record that W&B leaves for `wandb sync`: LevelDB's log format around protobuf."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as proto

_BLOCK = 32768
_LAST_FRAGMENTS = (1, 4)  # a whole record; the last of several fragments


class Recorded:
    """history: a dict a log call, in order, names as they were logged; nested ones joined by
    "."."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs, self.metrics = [], []
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.ended = False
        for record in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.runs.append(record.run)
            elif kind == "metric":
                self.metrics.append(record.metric)
            elif kind == "history":
                self.history.append(_items(record.history.item))
            elif kind == "summary":
                self.summary |= _items(record.summary.update)
            elif kind == "exit":
                self.ended = True

    @property
    def config(self) -> dict[str, Any]:
        return _items(self.runs[0].config.update)


def records_of(run_dir: Path) -> list[Recorded]:
    """The oldest first."""
    return [Recorded(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def read_records(path: Path) -> list[proto.Record]:
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, whole, records = 7, b"", []
    while position < len(content):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # a header does not cross blocks
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in _LAST_FRAGMENTS:
            record = proto.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}

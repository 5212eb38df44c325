"""npm packages as the demo finds them in its cache, with a handful of emoji drawn by the test."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from data_tools.demo.packages import PACKAGES

LICENSE = {"title": "CC BY 4.0", "spdx": "CC-BY-4.0", "url": "https://creativecommons.org/by/4.0/"}


def square(color: str) -> dict:
    return {"body": f'<rect width="32" height="32" fill="{color}"/>'}


EMOJI = [
    {
        "label": "ice hockey",
        "hexcode": "1F3D2",
        "tags": ["game", "puck", "R&B"],
    },
    {
        "label": "waving hand",
        "hexcode": "1F44B",
        "tags": ["hello"],
        "skins": [{"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF"}],
    },
    {"label": "double exclamation mark", "hexcode": "203C-FE0F", "tags": []},
    {"label": "flag: Côte d’Ivoire", "hexcode": "1F1E8-1F1EE", "tags": ["CI"]},
]
BY_CODE_POINT = {
    "icons.json": {
        "width": 32,
        "height": 32,
        "icons": {
            "hockey": square("#ff0000"),
            "hand": square("#00ff00"),
            "hand-dark": square("#003300"),
            "bangbang": square("#0000ff"),
        },
        "aliases": {"hello": {"parent": "hand"}},
    },
    "chars.json": {
        "1f3d2": "hockey",
        "1f44b": "hello",
        "1f44b-1f3ff": "hand-dark",
        "203c": "bangbang",
    },
}
BY_LABEL = {
    "icons.json": {
        "width": 16,
        "height": 32,
        "icons": {
            "icehockey": square("#aa0000"),
            "flag-for-cote-divoire": square("#ffaa00"),
            "stranger": square("#123456"),
            "broken": {"body": "<rect"},
        },
        "aliases": {"waving-hand": {"parent": "stranger", "hFlip": True}},
    },
}


def write_packages(cache: Path, broken_style: bool = False) -> None:
    """noto and twemoji by code point, fxemoji by label, and the names."""
    cache.mkdir(parents=True)
    for style in ("noto", "twemoji"):
        _write(cache, style, BY_CODE_POINT)
    _write(cache, "fxemoji", BY_LABEL)
    _write(cache, "emojibase", {"en/data.json": EMOJI})
    if broken_style:
        path = cache / "iconify-json-fxemoji-1.2.2.tgz"
        path.write_bytes(path.read_bytes()[:100])


def _write(cache: Path, name: str, members: dict) -> None:
    info = {"name": f"The {name}", "author": {"name": "A & B", "url": "https://example.org"}}
    members = {**members, "info.json": {**info, "license": LICENSE}}
    file_name = PACKAGES[name].lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    with tarfile.open(cache / file_name, "w:gz") as archive:
        for member, content in members.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{member}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

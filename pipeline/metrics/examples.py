"""Retrieval examples as pictures: a caption's five nearest images side by side."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

# Pixels: side of a tile without its frame, and width of the frame.
_SIDE, _FRAME = 128, 4
_RIGHT, _WRONG = "#1a7f37", "#d8dee4"


@dataclass(frozen=True)
class Strip:
    image: Image.Image
    """Best match first; the right one has a green frame."""
    caption: str
    """The query, and each place with its score: "a red fox: 1 wrong 0.31, 2 right 0.30, ..." """


def retrieval_strips(result: dict[str, Any]) -> list[Strip]:
    """One strip per example in the result of a retrieval set, as pipeline.eval makes it. Empty for
    other kinds of sets, and for sets too large to keep pictures."""
    if result.get("kind") != "retrieval":
        return []
    return [
        _strip(example)
        for example in result.get("examples", [])
        if all(item.get("picture") for item in example["top"])
    ]


def _strip(example: dict[str, Any]) -> Strip:
    tiles, places = [], []
    for place, item in enumerate(example["top"], start=1):
        right = item["image"] == example["image"]
        tile = ImageOps.pad(_decoded(item["picture"]), (_SIDE, _SIDE), color="white")
        tiles.append(ImageOps.expand(tile, border=_FRAME, fill=_RIGHT if right else _WRONG))
        places.append(f"{place} {'right' if right else 'wrong'} {item['score']:.2f}")
    strip = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
    for number, tile in enumerate(tiles):
        strip.paste(tile, (number * tile.width, 0))
    return Strip(strip, f"{example['caption']}: {', '.join(places)}")


def _decoded(data_uri: str) -> Image.Image:
    encoded = base64.b64decode(data_uri.partition(",")[2])
    return Image.open(io.BytesIO(encoded)).convert("RGB")

"""README.md of an exported folder: how to load it, what its pictures and texts must look like, and
what was measured when it was written."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.export.odd_pictures import SizeComparison, opened_kinds
from pipeline.export.odd_texts import ODD_TEXTS, TextComparison
from pipeline.export.opening import open_picture

CARD = "README.md"
_IMPORTS = """\
from typing import Any

import numpy as np
from PIL import Image, ImageOps"""


def write_card(
    folder: Path, config: ModelConfig, *, library: str, checked: str, sections: dict[str, str]
) -> None:
    """`library`: the Hub's name of the library that loads the folder; `checked`: the sentence of
    the export; `sections`: texts by their headings."""
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: zero-shot-image-classification\n"
        "tags:\n- clip\n---",
        f"# {config.name}",
        "A CLIP: an image and a text tower, whose features are compared by their cosine. Pictures "
        f"of {config.image_size} x {config.image_size} pixels, texts of up to "
        f"{config.text.context_length} tokens, features of {config.embed_dim} numbers.",
        f"When this folder was written: {checked}.",
        *(f"## {heading}\n\n{text}" for heading, text in sections.items()),
    ]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def python(lines: str) -> str:
    return f"```python\n{lines.rstrip()}\n```"


def on_opening() -> str:
    """How to open pictures, and what was measured of it."""
    rows = "\n".join(
        f"| {kind} | {f'at most {levels}' if levels else 'none'} |"
        for kind, levels in opened_kinds().items()
    )
    return (
        "The model was trained on pictures that were turned upright as their EXIF says, without "
        "alpha, with 8 bits a channel. Open them so:\n\n"
        + python(f"{_IMPORTS}\n\n\n{inspect.getsource(open_picture)}")
        + '\n\n`Image.open(file).convert("RGB")` alone leaves turned pictures on their side and '
        "makes 16-bit grey white. Measured difference from the pixels of the training, in levels "
        f"of 0 to 255:\n\n| file, opened so | difference |\n|---|---|\n{rows}"
    )


def on_sizes(sizes: SizeComparison) -> str:
    names = ", ".join(f"{width} x {height}" for width, height in sizes.shifted)
    return f"Measured with {sizes.reader}: {sizes.sentence()}." + (
        f" Shifted are {names}." if names else ""
    )


def on_texts(texts: Sequence[TextComparison]) -> str:
    """A table of the kinds, a column for each reader."""
    lines = [
        f"Measured on {sum(len(kind) for kind in ODD_TEXTS.values())} odd texts, how many have the "
        "token ids of the training:",
        "",
        f"| texts with | {' | '.join(text.reader for text in texts)} |",
        "|---" * (len(texts) + 1) + "|",
    ]
    for kind, group in ODD_TEXTS.items():
        counts = " | ".join(f"{text.alike[kind]} of {len(group)}" for text in texts)
        lines.append(f"| {kind} | {counts} |")
    cosines = " | ".join(f"{text.lowest_cosine:.3f}" for text in texts)
    lines.append(f"| lowest cosine of the features | {cosines} |")
    return "\n".join(lines)

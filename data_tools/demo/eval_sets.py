"""The held-out art style as evaluation sets, in the WebDataset layout of CLIP_benchmark.

twemoji/            zero-shot classification: classnames.txt, templates, test/0.tar of png + cls
twemoji_retrieval/  image-text retrieval: dataset_type.txt, test/0.tar of png + txt
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_tools.demo.corpus import Corpus, Drawing
from data_tools.demo.descriptions import MOST_TAGS, WORDINGS, word
from data_tools.ground.aside import write_bytes_aside

EVAL_SETS = ("twemoji", "twemoji_retrieval")
"""Folders of the zero-shot and of the retrieval set."""
# The wordings of the pictures' descriptions without tags, in the form of CLIP_benchmark.
TEMPLATES = ("{c}", "an emoji of {c}", "{c} emoji", "emoji of {c}.")
CAPTION = WORDINGS[3]


def write_eval_sets(corpus: Corpus, folder: Path) -> dict[str, int]:
    """Write both sets below `folder`, each file aside and then renamed. The same corpus gives the
    same bytes. Returns counts for the summary."""
    classes = {label: number for number, label in enumerate(corpus.labels)}
    zero_shot, retrieval = (folder / name for name in EVAL_SETS)
    write_bytes_aside(zero_shot / "classnames.txt", _lines(corpus.labels))
    write_bytes_aside(zero_shot / "zeroshot_classification_templates.txt", _lines(TEMPLATES))
    labelled = ((drawing, "cls", str(classes[drawing.emoji.label])) for drawing in corpus.held_out)
    _write_split(zero_shot / "test", labelled)
    write_bytes_aside(retrieval / "dataset_type.txt", b"retrieval\n")
    captioned = (
        (drawing, "txt", word(CAPTION, drawing.emoji.label, drawing.emoji.tags[:MOST_TAGS]))
        for drawing in corpus.held_out
    )
    _write_split(retrieval / "test", captioned)
    return {"classes": len(classes), "eval_images": len(corpus.held_out)}


def _write_split(folder: Path, samples: Iterator[tuple[Drawing, str, str]]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (drawing, kind, text) in enumerate(samples):
            for suffix, content in ((kind, text.encode()), ("png", drawing.png)):
                member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_bytes_aside(folder / "0.tar", buffer.getvalue())
    write_bytes_aside(folder / "nshards.txt", b"1\n")


def _lines(texts: tuple[str, ...] | list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()

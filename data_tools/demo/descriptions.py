"""The text beside a picture, as people write it on file pages: HTML, with markup that differs
between sites, sometimes with a few keywords.

The wording is chosen by the file's name, not by the site. If each style had its own wording, a
model could tell the pairs of a batch apart by style, and would learn that instead of what is drawn.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import xxhash

WORDINGS = (
    "{label}",
    "an emoji of {label}",
    "{label} emoji",
    "{label}: {tags}",
    "Emoji of {label}. Keywords: {tags}",
)
# CLDR has about a dozen tags per emoji; the file's name chooses which of them are used.
MOST_TAGS = 4
MARKUP = {
    "noto": '<p>{text}</p>\n<p><a href="https://github.com/googlefonts/noto-emoji"></a></p>',
    "noto-v1": '<div class="description mw-content-ltr en" dir="ltr" lang="en">{text}</div>',
    "fluent-emoji-flat": '<span lang="en">{text}</span>',
    "fxemoji": "<i>{text}</i><br>\n",
    "emojione": "<ul><li>{text}</li></ul>",
    "openmoji": "{text}",
}


def describe(label: str, tags: Sequence[str], style: str, file_name: str) -> str:
    """The HTML description of a file; its text (html_to_text) is the caption."""
    wording = WORDINGS[_draw("wording", file_name) % len(WORDINGS)]
    few = sorted(tags, key=lambda tag: _draw(tag, file_name))[:MOST_TAGS]
    text = word(wording, f"<b>{html.escape(label)}</b>", [html.escape(tag) for tag in few])
    return MARKUP[style].format(text=text)


def _draw(what: str, file_name: str) -> int:
    return xxhash.xxh64_intdigest(f"{what}/{file_name}".encode())


def word(wording: str, label: str, tags: Sequence[str]) -> str:
    """The wording with label and tags filled in; the bare label if it needs tags and there are
    none."""
    if "{tags}" in wording and not tags:
        return label
    return wording.format(label=label, tags=", ".join(tags))

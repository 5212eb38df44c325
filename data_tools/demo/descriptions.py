"""The text beside a picture, as people write it on file pages: HTML, each site in its own markup.

The wording is drawn from the file's name, not from the site: were every style to have a wording of
its own, a model could tell apart a batch by style alone and learn that instead of what is drawn.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import xxhash

WORDINGS = (
    "{label}",
    "{label}: {tags}",
    "An emoji of {label}: {tags}",
    "{label} emoji ({tags})",
    "Emoji of {label}. Keywords: {tags}",
)
MARKUP = {
    "noto": '<p>{text}</p>\n<p><a href="https://github.com/googlefonts/noto-emoji"></a></p>',
    "noto-v1": '<div class="description mw-content-ltr en" dir="ltr" lang="en">{text}</div>',
    "fluent-emoji-flat": '<span lang="en">{text}</span>',
    "fxemoji": "<i>{text}</i><br>\n",
    "emojione": "<ul><li>{text}</li></ul>",
    "openmoji": "{text}",
}


def describe(label: str, tags: Sequence[str], style: str, file_name: str) -> str:
    """The HTML description of a file; html_to_text of it is the caption."""
    wording = WORDINGS[xxhash.xxh64_intdigest(f"wording/{file_name}".encode()) % len(WORDINGS)]
    text = word(wording, f"<b>{html.escape(label)}</b>", [html.escape(tag) for tag in tags])
    return MARKUP[style].format(text=text)


def word(wording: str, label: str, tags: Sequence[str]) -> str:
    """The wording filled in; one that needs tags where there are none is the bare label."""
    return wording.format(label=label, tags=", ".join(tags)) if tags else label

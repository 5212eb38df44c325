"""The text beside a picture, as people write it on file pages: HTML, each site in its own markup,
some with a few keywords, some without.

The wording is drawn from the file's name, not from the site: were every style to have a wording of
its own, a model could tell apart a batch by style alone and learn that instead of what is drawn.
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
# Of a dozen that CLDR knows; which ones is drawn from the file's name, too.
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
    """The HTML description of a file; html_to_text of it is the caption."""
    wording = WORDINGS[_draw("wording", file_name) % len(WORDINGS)]
    few = sorted(tags, key=lambda tag: _draw(tag, file_name))[:MOST_TAGS]
    text = word(wording, f"<b>{html.escape(label)}</b>", [html.escape(tag) for tag in few])
    return MARKUP[style].format(text=text)


def _draw(what: str, file_name: str) -> int:
    return xxhash.xxh64_intdigest(f"{what}/{file_name}".encode())


def word(wording: str, label: str, tags: Sequence[str]) -> str:
    """The wording filled in; one that needs tags where there are none is the bare label."""
    if "{tags}" in wording and not tags:
        return label
    return wording.format(label=label, tags=", ".join(tags))

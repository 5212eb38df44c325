"""Text of strangers in messages: names in tars, keys, file names, URLs."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text in one line, with what a terminal would act on, or cannot show, as an escape.

    Control characters, marks that turn the direction of writing and line breaks become `\\x1b`,
    `\\u202e`, `\\n`; bytes that were no UTF-8 become `\\udcff`.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )

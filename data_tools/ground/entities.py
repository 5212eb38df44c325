"""HTML entities of texts that nobody vouches for."""

from __future__ import annotations

import html
import re

_LEADING_ZEROS = re.compile(r"&#0+(?=[0-9])")
_LARGER_THAN_UNICODE = re.compile(r"&#[0-9]{8,};?")


def unescaped(text: str) -> str:
    """html.unescape, which raises ValueError for a number of thousands of digits: it stands for no
    character, as any that is too large."""
    if "&" not in text:
        return text
    return html.unescape(_LARGER_THAN_UNICODE.sub("\ufffd", _LEADING_ZEROS.sub("&#", text)))

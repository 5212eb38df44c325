"""Keys of search servers: they are read from the environment, go into requests, and nowhere
else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from data_tools.tables.schema import DataError

HIDDEN = "[hidden]"


def key_from(variable: str, needed_by: str, where_from: str) -> str:
    """The value of an environment variable. Raises DataError, which names the variable and never
    the value, if it is missing or can't be sent in a header."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise DataError(
            f"{variable} is not set: {needed_by} needs a key in that environment variable "
            f"({where_from})"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        # httpx would show the value in its error about the header
        raise DataError(f"{variable} is no key: it has white space or letters outside ASCII")
    return key


class Secrets:
    """Removes keys from texts before they go into an error or a log."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        for key in keys:
            self.add(key)

    def add(self, key: str) -> None:
        """Remove `key` too from now on."""
        self._forms |= {form for form in (key, quote(key, safe=""), quote_plus(key)) if form}

    def hidden_in(self, text: str) -> str:
        """`text` with each key replaced by [hidden], also in its percent-encoded form."""
        for form in sorted(self._forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        return text

"""What a source gives, and what the search stage needs of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class SourceError(RuntimeError):
    """One query got no answer, for good; the message holds what the server said."""


class SourceStopped(SourceError):
    """The server is not to be asked anything more in this run: a quota is used up, the key is
    refused, it asks for a longer pause than may be waited. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture and its text, as the source tells them; what it does not tell is empty or None.

    `width` and `height` are of the original file, in pixels, also where `url` is a thumbnail.
    """

    url: str
    caption: str
    page_url: str = ""
    license: str = ""
    license_url: str = ""
    attribution: str = ""
    width: int | None = None
    height: int | None = None
    mature: bool = False


class SearchSource(Protocol):
    """A server that is asked query by query. `search` is called from `concurrency` threads."""

    name: str
    """Goes into the `source` column and names the cursor file."""
    address: str
    """The server, for messages."""
    concurrency: int
    settings: dict[str, object]
    """Everything an answer depends on, and no key; other settings, other cursor file."""

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """At most `limit` candidates, best first, none of them twice. Raises SourceError."""

    def counts(self) -> dict[str, int]:
        """For the stage's summary: requests, retries."""

    def close(self) -> None:
        """Give up waiting requests and close connections."""

"""What a search source gives, and the methods that the search stage calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class SourceError(RuntimeError):
    """One query got no answer, and another attempt would not help; the message holds what the
    server said."""


class SourceStopped(SourceError):
    """The server must not be asked again in this run: a quota is used up, the key is refused, or it
    asks for a pause longer than sources.max_wait_s. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture and its text as the source gives them; a field that it does not give is empty or
    None.

    `width` and `height` are pixels of the original file, even if `url` is that of a thumbnail.
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
    """A server that is asked one query at a time. `search` is called from `concurrency` threads."""

    name: str
    """Written to the column `source`, and part of the cursor file's name."""
    address: str
    """The server's address, for messages."""
    concurrency: int
    settings: dict[str, object]
    """Everything an answer depends on, without keys; other settings give another cursor file."""

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Yield at most `limit` candidates, best first, none of them twice. Raises SourceError."""

    def counts(self) -> dict[str, int]:
        """Numbers of requests and of retries, for the stage's summary."""

    def close(self) -> None:
        """Give up waiting requests and close connections."""

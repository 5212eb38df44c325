"""The User-Agent by which the project identifies itself to servers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from data_tools.config.sources import reaches_somebody
from data_tools.tables.schema import DataError


def user_agent(contact: str) -> str:
    """`clip-pretrain/VERSION (+contact)`, the form that operators ask of bots (w.wiki/4wJS). Raises
    DataError if `contact` is no e-mail address or URL."""
    if not reaches_somebody(contact):
        raise DataError(f"sources.contact = {contact!r}: give an e-mail address or URL in ASCII")
    try:
        number = version("clip-pretrain")
    except PackageNotFoundError:  # run from a source tree that is not installed
        number = "source"
    return f"clip-pretrain/{number} (+{contact})"

"""The parts that the report's page is put together from, and their way into HTML.

sections.py builds the page out of the blocks below; templates/ says how each looks. The templates
escape every value, so queries, captions, addresses and names from the web stay text, and only http
and https addresses become links.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Union

import jinja2

TEMPLATES = Path(__file__).with_name("templates")


class Link(str):
    """An address from outside. It is shown as a link if it is a web address, else as text."""


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of equal length. Integers get thousands separators."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    """Names of the columns; empty for a table without a header."""
    rows: Sequence[Sequence[object]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column stands on the right: the first row has an integer or a percentage
        ("12.3%") there."""
        first = self.rows[0] if self.rows else self.header
        return [_is_number(value) for value in first]


@dataclass(frozen=True)
class Names:
    """A label and a list of names in one paragraph."""

    kind: ClassVar[str] = "names"
    label: str
    names: Sequence[str]


@dataclass(frozen=True)
class Chart:
    kind: ClassVar[str] = "chart"
    uri: str
    """The picture itself, as a data: URI."""
    description: str


@dataclass(frozen=True)
class Picture:
    image_uri: str
    caption: str
    author: str
    licence: str
    address: Link


@dataclass(frozen=True)
class Pictures:
    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Columns:
    """Lists of blocks side by side where the page is wide enough, else one below the other."""

    kind: ClassVar[str] = "columns"
    columns: Sequence[Sequence[Block]]


Block = Union[Paragraph, Heading, Table, Names, Chart, Pictures, Columns]


@dataclass(frozen=True)
class Section:
    title: str
    """"" for the first section, which stands below the title of the page."""
    blocks: Sequence[Block]


def jpeg_uri(image: bytes) -> str:
    """A JPEG file as a data: URI."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One page that needs no other file, no script and no network."""
    return environment().get_template("report.html.j2").render(title=title, sections=sections)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The templates, with every value escaped and every unknown name an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.tests["web_address"] = _is_web_address
    return made


def _is_web_address(value: object) -> bool:
    return isinstance(value, Link) and value.lower().startswith(("http://", "https://"))


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.endswith("%"))

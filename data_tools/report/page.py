"""The card's HTML: every text is escaped here, and only http and https addresses become links."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { --line: #d8dee4; --quiet: #59636e; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 68em; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: .4em; }
h2 { font-size: 1.2em; margin: 2.2em 0 .5em; padding-top: .6em; border-top: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1em 0 .3em; } p { max-width: 52em; margin: .4em 0 .8em; }
table { border-collapse: collapse; } td, th { padding: .15em 1.2em .15em 0; text-align: left;
       border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--quiet); white-space: nowrap; }
td:first-child:not(.number) { min-width: 7em; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28em), 1fr));
       gap: 1.2em 2.5em; align-items: start; } .side > * { min-width: 0; overflow-x: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 1em; }
figure { margin: 0; font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; }
figure img { max-width: 100%; height: 9em; object-fit: contain; outline: 1px solid var(--line); }
.chart { width: 100%; max-width: 34em; } .source, .quiet { color: var(--quiet); }
.names { color: var(--quiet); font-size: 13px; }
"""


class Link(str):
    """An address from outside, to be shown as a link where it is one."""


def text(value: object) -> str:
    if isinstance(value, Link):
        shown = html.escape(value, quote=True)
        if not value.lower().startswith(("http://", "https://")):
            return shown
        return f'<a href="{shown}" rel="noopener noreferrer nofollow">{shown}</a>'
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(str(value), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Integers and percentages ("12.3%") stand on the right, as do the headers above them."""
    cells = [list(row) for row in rows]
    numeric = [_is_number(value) for value in cells[0]] if cells else [False] * len(header)
    lines = ["<table>"]
    if any(header):
        lines.append(_row("th", header, numeric))
    lines += [_row("td", row, [_is_number(value) for value in row]) for row in cells]
    return "\n".join([*lines, "</table>"])


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.endswith("%"))


def _row(tag: str, values: Sequence[object], numeric: Sequence[bool]) -> str:
    cells = (
        f'<{tag}{" class=number" if right else ""}>{text(value)}</{tag}>'
        for value, right in zip(values, numeric)
    )
    return f"<tr>{''.join(cells)}</tr>"


def section(title: str, *parts: str) -> str:
    return "\n".join([f"<h2>{text(title)}</h2>", *parts])


def side(*parts: str) -> str:
    """Beside each other where the page is wide enough."""
    return f'<div class="side">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def paragraph(*sentences: str) -> str:
    """Plain text; it is escaped here."""
    return f"<p>{text(' '.join(sentences))}</p>"


def names(label: str, values: Sequence[str]) -> str:
    """A label and a list of texts from outside, in one paragraph; nothing for no texts."""
    if not values:
        return ""
    listed = ", ".join(text(value) for value in values)
    return f'<p class="names">{text(label)} {listed}</p>'


def chart(uri: str, described: str) -> str:
    return f'<img class="chart" src="{uri}" alt="{text(described)}">'


def jpeg(image: bytes, described: str) -> str:
    encoded = base64.b64encode(image).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="{text(described)}">'


def document(title: str, body: Iterable[str]) -> str:
    """One page that needs no other file, no script and no network."""
    joined = "\n".join(part for part in body if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{text(title)}</h1>\n{joined}\n</body></html>\n"
    )

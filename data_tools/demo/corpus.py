"""The demo corpus: the emoji of several art styles, with their CLDR names and tags.

Six styles become the pictures of a small web. A seventh is never served and becomes the evaluation
sets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_tools.demo import packages
from data_tools.demo.config import HELD_OUT_STYLE, DemoConfig
from data_tools.demo.descriptions import describe
from data_tools.demo.mediawiki import Picture
from data_tools.demo.render import render_all
from data_tools.tables.schema import DataError
from data_tools.work.progress import StageProgress

SIDE = 64
PROCESSES = 2
# Pictures per 1,000 that are gone, and that have moved: links rot on the real web too.
MISSING_PER_MILLE, MOVED_PER_MILLE = 4, 20


@dataclass(frozen=True)
class Emoji:
    """`hexcode` is the code points in lower case, without variation selectors: "1f44b-1f3fb"."""

    label: str
    tags: tuple[str, ...]
    hexcode: str
    is_base: bool
    """It has no skin tone; the labels of base emoji are the queries and classes."""


@dataclass(frozen=True)
class Drawing:
    """One emoji in one style."""

    style: str
    emoji: Emoji
    png: bytes


@dataclass(frozen=True)
class Corpus:
    """Everything that the demo serves, asks for and evaluates."""

    labels: list[str]
    pictures: list[Picture]
    held_out: list[Drawing]
    """Drawings of the held-out style, of base emoji only."""


def build_corpus(config: DemoConfig) -> Corpus:
    """Fetch the packages, match drawings with emoji, render them. Raises DataError if npm or a
    package is missing, or nothing can be drawn."""
    cache = Path(config.cache)
    styles = [*config.styles, HELD_OUT_STYLE]
    packages.fetch([*styles, "emojibase"], cache)
    emoji = chosen(read_emoji(packages.read_json("emojibase", "en/data.json", cache)), config)
    matched: list[tuple[str, Emoji, str]] = []
    infos = {style: packages.read_json(style, "info.json", cache) for style in styles}
    for style in styles:
        icons = packages.read_json(style, "icons.json", cache)
        chars = packages.read_json(style, "chars.json", cache)
        only_base = style == HELD_OUT_STYLE
        for entry, svg in match_icons(emoji, icons, chars):
            if entry.is_base or not only_base:
                matched.append((style, entry, svg))
    with StageProgress("render", total=len(matched)) as progress:
        pngs = render_all([svg for _, _, svg in matched], SIDE, PROCESSES, progress.advance)
    drawings = [Drawing(style, entry, png) for (style, entry, _), png in zip(matched, pngs) if png]
    held_out = [drawing for drawing in drawings if drawing.style == HELD_OUT_STYLE]
    served = [drawing for drawing in drawings if drawing.style != HELD_OUT_STYLE]
    if not held_out or not served:
        raise DataError(f"no emoji could be drawn: delete {cache} and run again")
    pictures = [as_picture(drawing, infos[drawing.style]) for drawing in served]
    return Corpus([entry.label for entry in emoji if entry.is_base], pictures, held_out)


def read_emoji(data: list[dict[str, Any]]) -> list[Emoji]:
    """Base emoji in the order of CLDR, each followed by its skin tones, which have the same
    tags."""
    entries = []
    for base in data:
        tags = tuple(base.get("tags", ()))
        entries.append(Emoji(base["label"], tags, _hexcode(base["hexcode"]), True))
        for skin in base.get("skins", ()):
            entries.append(Emoji(skin["label"], tags, _hexcode(skin["hexcode"]), False))
    return entries


def chosen(emoji: list[Emoji], config: DemoConfig) -> list[Emoji]:
    """`num_labels` base emoji, spread evenly over the list, each with its skin tones."""
    starts = [number for number, entry in enumerate(emoji) if entry.is_base] + [len(emoji)]
    count = len(starts) - 1
    wanted = min(config.num_labels or count, count)
    groups = [index * count // wanted for index in range(wanted)]
    return [entry for group in groups for entry in emoji[starts[group] : starts[group + 1]]]


def match_icons(
    emoji: list[Emoji], icons: dict[str, Any], chars: dict[str, str] | None
) -> Iterator[tuple[Emoji, str]]:
    """Yield (emoji, SVG) for every emoji that the icon set has. They are matched by code point if
    the package lists code points (`chars`: code points -> icon name), else by label."""
    name_of = _by_code_point(chars) if chars else _by_label(icons)
    for entry in emoji:
        svg = _svg(icons, name_of(entry))
        if svg is not None:
            yield entry, svg


def _by_code_point(chars: dict[str, str]) -> Callable[[Emoji], str | None]:
    names = {_hexcode(code): name for code, name in chars.items()}
    return lambda entry: names.get(entry.hexcode)


def _by_label(icons: dict[str, Any]) -> Callable[[Emoji], str | None]:
    """Find an icon's name by the emoji's label. Hyphens are left out on both sides, because fxemoji
    writes "alarmclock" and the others "alarm-clock"; emojione writes "flag-for-chad" for
    "flag: Chad"."""
    known = [*icons["icons"], *icons.get("aliases", {})]
    names = {name.replace("flag-for-", "flag-").replace("-", ""): name for name in known}
    return lambda entry: names.get(_slug(entry.label))


def _slug(label: str) -> str:
    plain = unicodedata.normalize("NFKD", label.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain)


def _hexcode(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _svg(icons: dict[str, Any], name: str | None) -> str | None:
    alias = icons.get("aliases", {}).get(name)
    if alias is not None and set(alias) <= {"parent", "hidden"}:  # mirrored icons have more fields
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)  # a square around the icon, so that nothing is stretched
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )


def as_picture(drawing: Drawing, info: dict[str, Any]) -> Picture:
    """The picture with the file page that an uploader of this style would have written."""
    emoji, author, terms = drawing.emoji, info["author"], info["license"]
    title = re.sub(r'[#<>\[\]|{}/:?*"\\]+', " ", f"{info['name']} {emoji.hexcode} {emoji.label}")
    name = f"{' '.join(title.split())}.png"
    draw = xxhash.xxh64_intdigest(name.encode()) % 1000
    rotten = "missing" if draw < MISSING_PER_MILLE else "moved"
    return Picture(
        name=name,
        content=drawing.png,
        description=describe(emoji.label, emoji.tags, drawing.style, name),
        site=drawing.style,
        license=terms["title"],
        license_url=terms["url"],
        artist=f'<a rel="nofollow" href="{author["url"]}">{author["name"]}</a>',
        served=rotten if draw < MISSING_PER_MILLE + MOVED_PER_MILLE else "ok",
    )

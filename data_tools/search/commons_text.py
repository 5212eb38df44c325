"""The text of Wikimedia Commons' fields: what a browser shows of them, without what machines wrote
for machines.

Templates add QuickStatements in hidden elements (https://commons.wikimedia.org/wiki/Module:TagQS),
and put the name of its language before a description. Where a server between has dropped the tags,
both stand in the text.
"""

from __future__ import annotations

import re

from data_tools.search.language_names import LANGUAGE_CODES, LANGUAGE_NAMES
from data_tools.text.html_text import html_to_text

STATEMENT = re.compile(r"QS:[A-Za-z]\w*")
# What statements are about; these can be glued to the word before: "Irisestitle QS:P1476,...".
SUBJECTS = (
    "accession number|artist|author|creator|date|depicts|description|dimensions|institution|label|"
    "location|medium|object|place of creation|title"
)
LONGEST_SUBJECT = 40
_KNOWN_SUBJECT = re.compile(rf'(?:(?<=\s)")?(?:{SUBJECTS})\s+\Z', re.IGNORECASE)
_SUBJECT = re.compile(r'(?:(?<=\s)")?(?<![^\s"])[a-z]+\s+\Z', re.IGNORECASE)
_VALUE = re.compile(r'\s*[,;|]\s*"?(?:[A-Z][0-9]+|[-+@]?[0-9][^\s,;|"]*|[-+@][^\s,;|"]*)"?')
_QUOTED = re.compile(r'\s*[,;|]\s*(?:[a-z][a-z0-9-]*:)?\s*["\u201c]', re.IGNORECASE)
_MARK = re.compile('["\u201d]')
_NEXT = re.compile(rf"\s*(?:\Z|[,;|]|(?:{SUBJECTS}|[a-z]{{1,20}})\s+QS:)", re.IGNORECASE)
TEMPLATE = re.compile(r"\{\{([^{}|]*)(?:\|([^{}]*))?\}\}")
MAX_NESTED_TEMPLATES = 4
_LABEL = re.compile(
    r"([^:\uff1a]{1,50}?) ?(?:\([^()]{1,30}\)|\uff08[^\uff08\uff09]{1,30}\uff09)? ?[:\uff1a]"
)


def commons_text(fragment: str) -> str:
    """The text of an HTML field, in one line; empty if it has none. No text is an error, and the
    time is linear in its length."""
    text = html_to_text(fragment, is_language_label)
    text = " ".join(_without_templates(_without_statements(text)).split())
    label = _LABEL.match(text)
    if label and _names_language(label[1]):
        text = text[label.end() :].strip()
    return text


def is_language_label(text: str) -> bool:
    """Whether `text` is the name of a language and a colon: "Deutsch:", "English (UK) :"."""
    label = _LABEL.fullmatch(text)
    return label is not None and _names_language(label[1])


def _names_language(name: str) -> bool:
    return name.strip().casefold() in LANGUAGE_NAMES


def _without_statements(text: str) -> str:
    kept, at = [], 0
    for statement in STATEMENT.finditer(text):
        before = text[max(at, statement.start() - LONGEST_SUBJECT) : statement.start()]
        subject = _KNOWN_SUBJECT.search(before) or _SUBJECT.search(before)
        if statement.start() >= at and subject is not None:
            begins = statement.start() - len(before) + subject.start()
            kept += [text[at:begins], " "]
            at = _after_values(text, statement.end())
    return "".join([*kept, text[at:]])


def _after_values(text: str, at: int) -> int:
    """The place after the values of a statement: `,"The Red Barn"`, `,en:"The Red Barn"`,
    `,+1890-00-00T00:00:00Z/9,P1480,Q5727902`."""
    following = text.find(" QS:", at)
    stops = following if following >= 0 else len(text)
    while True:
        if value := _VALUE.match(text, at):
            at = value.end()
        elif quoted := _QUOTED.match(text, at):
            at = _after_quoted(text, quoted.end(), stops)
        else:
            return at


def _after_quoted(text: str, at: int, stops: int) -> int:
    """The place after the quotation mark that ends a value. A value can hold such marks itself
    ("The "Big" Barn"): the mark that ends it has the end, a separator or a statement behind it."""
    first = -1
    for mark in _MARK.finditer(text, at, stops):
        first = mark.end() if first < 0 else first
        if _NEXT.match(text, mark.end()):
            return mark.end()
    return first if first >= 0 else stops


def _without_templates(text: str) -> str:
    """Templates that the server left unexpanded: those of languages become their text, the others
    nothing."""
    for _ in range(MAX_NESTED_TEMPLATES):
        if "{{" not in text:
            break
        text = TEMPLATE.sub(_expanded, text)
    return text


def _expanded(template: re.Match[str]) -> str:
    name, arguments = template[1].strip().lower(), template[2] or ""
    if name not in LANGUAGE_CODES and name != "w":  # {{w|Barn}} is a link to Wikipedia
        return " "
    return arguments.split("|")[0].strip().removeprefix("1=")

"""What --help prints: purpose, usage, every setting with type, default and meaning, an example, and
the exit codes."""

from __future__ import annotations

import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any

from data_tools.ground import exit_codes
from data_tools.ground.field_docs import field_docs
from data_tools.ground.overrides import Configuration
from data_tools.ground.settings import Command
from data_tools.ground.types import plain_type, type_name

WIDTH_WITHOUT_TERMINAL = 100


def help_text(command: Command[Any], width: int | None = None) -> str:
    """The whole help, wrapped to `width` characters; None is the terminal's width."""
    width = width or _terminal_width()
    lines = [*_wrapped(command.purpose, width), "", *_usage(command, width)]
    own = list(_entries(command.settings, ""))
    if own:
        lines += ["", "Settings (name=value, or --name value):"]
        for head, text in own:
            lines += _entry(head, text, width)
    configuration = command.configuration
    while configuration is not None:
        lines += _configuration(configuration, width)
        configuration = configuration.also
    lines += ["", "Example:", f"  python -m {command.name} {command.example}"]
    return "\n".join([*lines, "", *_wrapped(exit_codes.LINE, width)])


def _terminal_width() -> int:
    if not sys.stdout.isatty():
        return WIDTH_WITHOUT_TERMINAL
    return max(40, shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns)


def _usage(command: Command[Any], width: int) -> list[str]:
    words = []
    for number, field in enumerate(fields(command.settings)):
        required = field.default is MISSING and field.default_factory is MISSING
        word = f"{field.name}={field.name.upper()}"
        if number == 0 and command.bare_word:
            word = field.name.upper()
        words.append(word if required else f"[{word}]")
    if command.configuration is not None:
        words.append("[field=value ...]")
    usage = " ".join(["Usage: python -m", command.name, *words])
    return _wrapped(usage, width, "       ")


def _configuration(configuration: Configuration, width: int) -> list[str]:
    lines = []
    groups = {
        name: choices
        for name, choices in configuration.groups.items()
        if configuration.also is None or name not in configuration.also.groups
    }
    if groups:
        lines += ["", f"Groups (files in {configuration.folder.name}/):"]
        for name, choices in groups.items():
            lines += _wrapped(f"{name} = {', '.join(choices)}", width - 2, "    ", "  ")
    lines += ["", "Fields of the configuration (field=value):"]
    for head, text in _entries(configuration.job, configuration.prefix):
        if not configuration.only or head.startswith(f"{configuration.only}."):
            lines += _entry(head, text, width)
    return lines


def _entries(cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    """(name: type, default, allowed values; meaning) of each field, those of nested dataclasses
    under their full names."""
    types, docs = typing.get_type_hints(cls), field_docs(cls)
    for field in fields(cls):
        plain, _ = plain_type(types[field.name])
        if isinstance(plain, type) and is_dataclass(plain):
            yield from _entries(plain, f"{prefix}{field.name}.")
            continue
        facts = [type_name(types[field.name]), _default(field)]
        if field.metadata.get("allowed"):
            facts.append(f"allowed: {field.metadata['allowed']}")
        yield f"{prefix}{field.name}: {'; '.join(facts)}", docs.get(field.name, "")


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"default {_shown(field.default)}"
    if field.default_factory is not MISSING:
        return f"default {_shown(field.default_factory())}"
    return "must be given"


def _shown(value: Any) -> str:
    """As it is written on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_shown, value)) + "]"
    return str(value) if str(value) else "empty"


def _entry(head: str, text: str, width: int) -> list[str]:
    lines = _wrapped(head, width - 2, "      ", "  ")
    return [*lines, *(_wrapped(text, width - 6, "      ", "      ") if text else [])]


def _wrapped(text: str, width: int, indent: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        max(20, width),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

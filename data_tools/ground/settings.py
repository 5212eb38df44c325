"""The one grammar of every command line of the project.

A command declares its settings as the fields of a dataclass. On the command line a setting is
`name=value`; `--some-name value`, `--some-name=value` and, for a boolean, `--some-name` mean
`some_name=value` too. Where the command says so, one bare word is the value of its first setting.
Words that belong to a configuration (train.lr=0.1) are handed on.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Generic, TypeVar

from data_tools.ground.overrides import Configuration
from data_tools.ground.types import plain_type, value_of

Settings = TypeVar("Settings")


class Refused(ValueError):
    """A command line that was refused; the message has a line for each problem."""


@dataclass(frozen=True)
class NoSettings:
    """The settings of a command that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class Command(Generic[Settings]):
    name: str
    """As after `python -m`: "data_tools.audit"."""
    purpose: str
    """What the command does, in one or a few sentences."""
    settings: type[Settings]
    """The dataclass of its own settings; a field without a default must be given."""
    example: str
    """The words of one command line that runs, without `python -m NAME`."""
    bare_word: bool = False
    """Whether a word without "=" is the value of the first setting."""
    goes_on: bool = False
    """Whether the same command goes on where Ctrl-C stopped it."""
    check: Callable[[Mapping[str, Any]], list[str]] = lambda given: []
    """Problems of the settings that were given or have defaults, a line each; a setting that is
    missing or that could not be read is not among them."""
    configuration: Configuration | None = None
    """What the other words may set; None where the command takes no other words."""
    refused_by: tuple[type[Exception], ...] = ()
    """Errors of the work that mean that the configuration was refused."""
    failed_by: tuple[type[Exception], ...] = ()
    """Errors of the work that have an explanation; any other is a defect and keeps its
    traceback."""


def parse(command: Command[Settings], arguments: list[str]) -> tuple[Settings, list[str]]:
    """The command's own settings, and the configuration's words as `name=value`.

    Raises Refused with every problem; each names the setting, the value and the fix.
    """
    types = typing.get_type_hints(command.settings)
    problems: list[str] = []
    given: dict[str, Any] = {}
    rest: list[str] = []
    unreadable: set[str] = set()
    for word, name, text in _pairs(command, types, arguments, problems):
        if name not in types:
            rest.append(word)
            continue
        try:
            given[name] = value_of(text, types[name])
            if text == "" and given[name] is not None:
                raise ValueError("give a value")
        except ValueError as error:
            problems.append(f"{word}: {error}")
            unreadable.add(name)
    if command.configuration is not None:
        problems += command.configuration.unknown_names(rest, types)
    for name in types:
        if name not in given and name not in unreadable:
            problems += _take_default(command.settings, name, given)
    readable = {name: value for name, value in given.items() if name not in unreadable}
    problems += command.check(readable)
    if problems:
        raise Refused(
            "\n  ".join([f"python -m {command.name} cannot start:", *dict.fromkeys(problems)])
        )
    return command.settings(**given), rest


def _take_default(cls: type, name: str, given: dict[str, Any]) -> list[str]:
    """`given` grows by the setting's default; a problem where it has none."""
    (field,) = (field for field in fields(cls) if field.name == name)
    if field.default is MISSING and field.default_factory is MISSING:
        return [f"{name} is not given: add {name}=..."]
    given[name] = field.default if field.default_factory is MISSING else field.default_factory()
    return []


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a refusal: the known name that is most like `name`, or else the names."""
    names = list(known)
    like = difflib.get_close_matches(name, names, n=1)
    if like:
        return f"do you mean {like[0]}?"
    if len(names) > 20:
        return "--help lists the settings"
    return f"the settings are {', '.join(names)}" if names else "it takes no settings"


def _pairs(
    command: Command[Any], types: Mapping[str, Any], arguments: list[str], problems: list[str]
) -> Iterable[tuple[str, str, str]]:
    """(word, name, value) of each word that names something known, or that a configuration may
    know; `problems` grows by the others."""
    first = next(iter(types), "")
    words = iter(arguments)
    taken = False
    for word in words:
        if word.startswith("--") and len(word) > 2:
            pair = _flag(command, types, word, words, problems)
            if pair is not None:
                yield pair
            continue
        name, equals, text = word.partition("=")
        # A bare path may itself contain "=": a name has no slash and is an identifier.
        if command.bare_word and not taken and not (equals and _is_name(name)):
            if not word.startswith("-"):
                taken = True
                yield word, first, word
                continue
        if name in types and equals or command.configuration is not None:
            yield word, name if equals else "", text
        elif not equals:
            problems.append(f"{word}: give name=value; {nearest(word, types)}")
        else:
            problems.append(f"{word}: there is no setting {name}; {nearest(name, types)}")


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _flag(
    command: Command[Any],
    types: Mapping[str, Any],
    word: str,
    following: Any,
    problems: list[str],
) -> tuple[str, str, str] | None:
    """`--some-name`, with its value from the same word or from the next one."""
    flag, equals, text = word[2:].partition("=")
    name = flag.replace("-", "_")
    known = dict(types)
    if command.configuration is not None:
        known = {**command.configuration.types, **dict.fromkeys(command.configuration.groups, str)}
        known |= types
    if name not in known:
        problems.append(f"{word}: there is no setting {name}; {nearest(name, known)}")
        return None
    if not equals:
        if plain_type(known[name])[0] is bool:
            text = "true"
        else:
            value = next(following, None)
            if value is None:
                problems.append(f"{word}: give its value after it")
                return None
            text = value
    shown = f"{word} {text}" if not equals and text != "true" else word.replace("=", " ", 1)
    return (shown, name, text) if name in types else (f"{name}={text}", name, text)

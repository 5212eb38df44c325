"""The types that a setting may have: their names for the help, and a value from its text."""

from __future__ import annotations

import types
import typing
from enum import Enum, EnumMeta
from pathlib import Path
from typing import Any


def plain_type(annotation: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed: `int | None` gives (int, True)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [one for one in typing.get_args(annotation) if one is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        return (members[0] if len(members) == 1 else annotation), optional
    return annotation, False


def type_name(annotation: Any) -> str:
    """For the help: "int", "text or null", "true or false", "one of a, b", "list of text"."""
    plain, optional = plain_type(annotation)
    null = " or null" if optional else ""
    choices = choices_of(plain)
    if choices:
        return f"one of {', '.join(choices)}{null}"
    if typing.get_origin(plain) is list:
        return f"list of {type_name(typing.get_args(plain)[0])}{null}"
    if typing.get_origin(plain) is dict:
        key, value = typing.get_args(plain)
        return f"map of {type_name(key)} to {type_name(value)}{null}"
    names = {str: "text", Path: "path", bool: "true or false", int: "int", float: "number"}
    return names.get(plain, getattr(plain, "__name__", str(plain))) + null


def choices_of(plain: Any) -> list[str]:
    """The words that an Enum or a Literal allows; empty for any other type."""
    if isinstance(plain, type) and issubclass(plain, Enum):
        return [member.name for member in plain]
    if typing.get_origin(plain) is typing.Literal:
        return [str(choice) for choice in typing.get_args(plain)]
    return []


def value_of(text: str, annotation: Any) -> Any:
    """The value that `text` stands for. Raises ValueError whose message is the advice to the user,
    such as "give a whole number"."""
    plain, optional = plain_type(annotation)
    if optional and text in ("", "null"):
        return None
    choices = choices_of(plain)
    if choices:
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return plain[text] if isinstance(plain, EnumMeta) else text
    if plain is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("give true or false")
        return text.lower() == "true"
    if plain is int or plain is float:
        try:
            return plain(text)
        except ValueError:
            advice = "give a whole number" if plain is int else "give a number"
            raise ValueError(advice) from None
    return plain(text)

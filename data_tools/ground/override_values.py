"""What is wrong with the values on a command line: all at once and with the fix, where Hydra would
stop at the first and name its own types."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.ground.errors import error_chain
from data_tools.ground.overrides import Configuration
from data_tools.ground.types import plain_type, type_name

SEVERAL = ("source", "experiment", "recipe")
"""Groups of which several files may be chosen: [commons,pool]."""


def wrong_values(configuration: Configuration, words: Iterable[str]) -> dict[str, str]:
    """The words whose value cannot be what it is given to, each with its problem as
    `NAME = VALUE: what to give`.

    words: as `Configuration.quoted` returns them. A value that only fails in company of others,
    such as an interpolation, is left to Hydra.
    """
    parser = OverridesParser.create()
    problems: dict[str, str] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            override = parser.parse_override(word)
        except HydraException:
            problems[word] = f"{name} = {text}: cannot be read; put the value between quotes: " + (
                f"\"{name}='{text}'\""
            )
            continue
        advice = _wrong_word(configuration, name, override)
        if advice:
            is_text = not override.is_sweep_override() and isinstance(override.value(), str)
            problems[word] = f"{name} = {_shown(override.value()) if is_text else text}: {advice}"
    return problems


def wrong_fields(configuration: Configuration, values: Mapping[str, Any]) -> dict[str, str]:
    """As `wrong_values`, of fields by their full names: name -> problem."""
    found = {name: _wrong_value(configuration, name, value) for name, value in values.items()}
    return {
        name: f"{name} = {_shown(values[name])}: {advice}"
        for name, advice in found.items()
        if advice
    }


def _wrong_word(configuration: Configuration, name: str, override: Override) -> str | None:
    if override.is_sweep_override():
        return "one command starts one job; give one value, or [...] for a list"
    if name in configuration.groups:
        return _wrong_choice(configuration.groups[name], name, override.value())
    return _wrong_value(configuration, name, override.value())


def _wrong_choice(choices: list[str], name: str, value: Any) -> str | None:
    chosen = value if isinstance(value, list) else [value]
    if isinstance(value, list) and name not in SEVERAL:
        return f"only one can be chosen; give one of {', '.join(choices)}"
    if value is None:
        return f"give one of {', '.join(choices)}, or leave it out"
    for one in chosen:
        if one not in choices:
            like = difflib.get_close_matches(str(one), choices, n=1)
            hint = f"; do you mean {like[0]}?" if like else ""
            return f"give one of {', '.join(choices)}{hint}"
    return None


def _wrong_value(configuration: Configuration, name: str, value: Any) -> str | None:
    annotation = configuration.types.get(name)
    inside = [field for field in configuration.types if field.startswith(f"{name}.")]
    if "${" in str(value) or not (annotation or inside):
        return None  # it depends on other values: an interpolation, an element of a list
    try:
        OmegaConf.update(OmegaConf.structured(configuration.job), name, value)
        return None
    except OmegaConfBaseException as error:
        said = error_chain(error).splitlines()[0]
    if inside:
        return f"is a group of fields ({said}); give them one by one, such as {inside[0]}=..."
    return _advice(annotation, value, said)


def _advice(annotation: Any, value: Any, said: str) -> str:
    """What to give instead of `value`, of which the schema has `said` what is wrong."""
    plain, optional = plain_type(annotation)
    if typing.get_origin(plain) is list:
        element = typing.get_args(plain)[0]
        details = f" ({said})" if is_dataclass(element) and isinstance(value, list) else ""
        return f"give a list, such as {_list(element, value)}{details}"
    kind = type_name(plain)
    kind = {"int": "a whole number", "number": "a number"}.get(kind, kind)
    is_whole = plain is int and isinstance(value, float) and value.is_integer()
    whole = f", such as {int(value)}" if is_whole else ""
    return f"give {kind}{whole}" + (", or null" if optional else "")


def _list(element: Any, value: Any) -> str:
    """An example of a list of this type, of the value itself where that is a text."""
    if is_dataclass(element):
        return "[{manifest: A, weight: 3}]"
    if element is str:
        return f"[{value}]" if isinstance(value, str) else "[one,two]"
    return "[0.5,0.5,0.5]" if element is float else "[1,2]"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)

"""The words of a command line that change a configuration: their names are checked against the
fields, and texts are quoted, before Hydra reads them.

Hydra's own grammar gives many characters of a path a meaning: spaces, accents, brackets, commas.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_tools.ground.types import plain_type

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_PLAIN_ELEMENT = re.compile(r"[A-Za-z_./][\w./:*?@%+-]*", re.ASCII)


@dataclass(frozen=True)
class Configuration:
    """What the words of a command may set: the fields of a job, and the groups of files."""

    job: type
    """A dataclass whose fields are plain values or dataclasses."""
    folder: Path
    """The folder of the configuration files."""
    name: str
    """The file in it that everything starts from, without .yaml."""
    prefix: str = ""
    """In front of the name of every field, such as "demo."."""
    also: Configuration | None = None
    """A second configuration whose words the command takes too."""
    only: str = ""
    """The one field of the job (and the group of its name) that may be set; empty allows all."""

    @cached_property
    def types(self) -> dict[str, Any]:
        """Full name of each field that holds a value -> its type."""
        own = {
            name: annotation
            for name, annotation in _leaves(self.job, self.prefix)
            if not self.only or name.startswith(f"{self.only}.")
        }
        return own | (self.also.types if self.also else {})

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Name of each config group -> its choices, the names of the files in the group's
        folder."""
        text = (self.folder / f"{self.name}.yaml").read_text() if self.name else ""
        names = re.findall(r"^  - (\w+):", text, re.MULTILINE)
        own = {
            name: sorted(path.stem for path in (self.folder / name).glob("*.yaml"))
            for name in names
            if self.only in ("", name)
        }
        return own | (self.also.groups if self.also else {})

    def unknown_names(self, words: Iterable[str], own: Iterable[str] = ()) -> list[str]:
        """A problem for each `name=value` whose name is no field, group or one of `own`, also for
        Hydra's +name=value, and for Hydra's ~name and hydra.*, which would change nothing."""
        known = [*own, *self.groups, *self.types]
        branches = {name.rpartition(".")[0] for name in self.types}
        problems = []
        for word in words:
            name, equals, _ = word.partition("=")
            name = name.lstrip("+")  # an added field would be unknown to the dataclasses too
            if name.startswith("~"):
                problems.append(f"{word}: no setting can be taken away; give name=value")
            elif name.startswith(("hydra.", "hydra/")):
                problems.append(f"{word}: Hydra's own settings change nothing here; leave it out")
            elif not equals or not name:
                problems.append(f"{word}: give name=value, such as {known[0]}=...")
            elif not (name in known or self._is_below_or_above(name, branches)):
                like = difflib.get_close_matches(name, known, n=1)
                hint = f"do you mean {like[0]}?" if like else f"there are {_tops(known)}"
                problems.append(f"{word}: there is no setting {name}; {hint}")
        return problems

    def _is_below_or_above(self, name: str, branches: set[str]) -> bool:
        """A group of fields as a whole (train={...}), or an element of a list or map."""
        if any(branch == name or branch.startswith(f"{name}.") for branch in branches):
            return True
        return any(
            name.startswith(f"{field}.")
            and typing.get_origin(plain_type(annotation)[0]) in (list, dict)
            for field, annotation in self.types.items()
        )

    def quoted(self, words: Iterable[str]) -> tuple[list[str], list[str]]:
        """The words as Hydra must read them, and the problems of lists that it cannot be given.

        The value of a text field means exactly the text that was given, unless it is one quoted
        string of Hydra's grammar or has an interpolation (${...}).
        """
        out, problems = [], []
        for word in words:
            name, equals, text = word.partition("=")
            if name.lstrip("+") in (*self.types, *self.groups):
                name = name.lstrip("+")  # what exists is changed, however it is asked for
                word = f"{name}{equals}{text}"
            plain, optional = plain_type(self.types.get(name))
            if not equals or (optional and text == "null"):
                out.append(word)
            elif plain in (str, Path):
                out.append(f"{name}={quoted_text(text)}")
            elif plain == list[str]:
                value = quoted_list(text)
                out.append(word if value is None else f"{name}={value}")
                if value is None:
                    problems.append(
                        f"{word}: put each element between quotes: {name}=['one','two, three']"
                    )
            else:
                out.append(word)
        return out, problems


def quoted_text(text: str) -> str:
    """`text` as a string of Hydra's grammar; what is one already, or interpolates, stays."""
    if _QUOTED.fullmatch(text) or "${" in text:
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def quoted_list(text: str) -> str | None:
    """A list of texts with those elements quoted that Hydra would not take as they are; None where
    the elements cannot be told apart."""
    if not (text.startswith("[") and text.endswith("]")) or "${" in text:
        return text  # Hydra's and the schema's own answer
    inner = text[1:-1]
    if re.fullmatch(rf"\s*(?:(?:{_QUOTED.pattern}|[^'\"\[\]{{}}(),]*)\s*,?\s*)*", inner) is None:
        return None
    elements = [element.strip() for element in _elements(inner)]
    return "[" + ",".join(_element(element) for element in elements) + "]"


def _elements(inner: str) -> list[str]:
    if not inner.strip():
        return []
    pieces = re.findall(rf"(?:{_QUOTED.pattern}|[^,])+", inner)
    return [piece for piece in pieces if piece.strip()]


def _element(text: str) -> str:
    known = text in ("null", "true", "false") or _PLAIN_ELEMENT.fullmatch(text)
    return text if known else quoted_text(text)


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, annotation in typing.get_type_hints(cls).items():
        plain, _ = plain_type(annotation)
        if isinstance(plain, type) and is_dataclass(plain):
            yield from _leaves(plain, f"{prefix}{name}.")
        else:
            yield prefix + name, annotation


def _tops(names: Iterable[str]) -> str:
    """The first parts of dotted names."""
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))

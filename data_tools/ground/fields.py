"""Fields of configuration dataclasses that carry what holds for their value: the bound that the
value must keep, and whether a run that is resumed may change it, or cannot.

    steps: int = at_least(1, default=10_000)
    num_workers: int = changeable(at_least(1, default=2))

Each helper gives a `dataclasses.field`; its metadata have `allowed`, a short text for the help such
as ">= 1". `out_of_bounds` walks a whole configuration and names every value that breaks its bound.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")

_BOUND, _CHANGEABLE, _FIXED = "bound", "changeable", "fixed"
_HASHED, _NOT_HASHED = "hashed", "not hashed"


@dataclass(frozen=True, slots=True)
class Bound:
    """The interval that a number must lie in; `low_open` and `high_open` leave out its ends.

    A number must be finite, and nan is in no interval. A text must not be empty (`is_text`).
    """

    allowed: str
    """For the help: ">= 1", "0 to 1"."""
    advice: str
    """For the problem, after "NAME = VALUE: "."""
    null: str
    """What null does, where the field may be null: "turns it off"."""
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    is_text: bool = False

    def holds(self, value: Any) -> bool:
        if self.is_text:
            return bool(value.strip())
        above = self.low < value if self.low_open else self.low <= value
        below = value < self.high if self.high_open else value <= self.high
        return above and below and _is_finite(value)


def _is_finite(value: float) -> bool:
    """Also of whole numbers that are beyond every float."""
    return isinstance(value, int) or math.isfinite(value)


def at_least(low: float, *, default: T, null: str = "turns it off", advice: str = "") -> T:
    """A field whose number must be `low` or more.

    Args:
        null: what null does, for the problem's text; said only where the field may be null.
        advice: replaces the text "must be >= LOW" of the problem.
    """
    advice = advice or f"must be >= {low}"
    return _field(default, Bound(allowed=f">= {low}", advice=advice, null=null, low=low))


def more_than(low: float, *, default: T, null: str = "turns it off", advice: str = "") -> T:
    """A field whose number must be more than `low`; for the rest see `at_least`."""
    advice = advice or f"must be > {low}"
    bound = Bound(allowed=f"> {low}", advice=advice, null=null, low=low, low_open=True)
    return _field(default, bound)


def between(
    low: float,
    high: float,
    *,
    default: T,
    low_open: bool = False,
    high_open: bool = False,
    null: str = "turns it off",
    advice: str = "",
) -> T:
    """A field whose number must be `low` to `high`; `low_open` and `high_open` leave out an end.
    For the rest see `at_least`."""
    if low_open:
        allowed = f"more than {low}, {'below' if high_open else 'at most'} {high}"
    else:
        allowed = f"{low} to {'below ' if high_open else ''}{high}"
    bound = Bound(
        allowed=allowed,
        advice=advice or f"give {allowed}",
        null=null,
        low=low,
        high=high,
        low_open=low_open,
        high_open=high_open,
    )
    return _field(default, bound)


def share(of_what: str, *, default: T) -> T:
    """A field whose number is a share: 0 to 1. `of_what`: "of the samples"."""
    return between(0, 1, default=default, advice=f"a share {of_what}, give 0 to 1")


def share_below_1(of_what: str, *, default: T, null: str = "turns it off") -> T:
    """As `share`, without 1, which would leave nothing, or let nothing ever change."""
    advice = f"a share {of_what}, give 0 or more, and less than 1"
    return between(0, 1, default=default, high_open=True, null=null, advice=advice)


def not_empty(*, default: T, null: str = "turns it off") -> T:
    """A field whose text must hold more than blanks."""
    bound = Bound(allowed="not empty", advice="must not be empty", null=null, is_text=True)
    return _field(default, bound)


def changeable(field: T) -> T:
    """The same `field`, which a run that is resumed may change: a group with all that is in it, or
    one value."""
    assert isinstance(field, dataclasses.Field)
    field.metadata = MappingProxyType({**field.metadata, _CHANGEABLE: True})
    return field


def fixed(because: str, field: T) -> T:
    """The same `field`, which a run that is resumed cannot change by force either. `because` is the
    reason, after "NAME cannot change in a run: "."""
    assert isinstance(field, dataclasses.Field)
    field.metadata = MappingProxyType({**field.metadata, _FIXED: because})
    return field


def null_hashed_as(value: Any, field: T) -> T:
    """The same `field`; where it is null, `hashable` has `value`, which meant off before null did:
    data folders of those versions keep their fingerprints."""
    return hashed_as({None: value}, field)


def hashed_as(before: Mapping[Any, Any], field: T) -> T:
    """The same `field`; where its value is in `before`, `hashable` has the value that `before` has
    for it: what versions before hashed for a choice that is now written in another way, or for a
    default that has changed."""
    assert isinstance(field, dataclasses.Field)
    field.metadata = MappingProxyType({**field.metadata, _HASHED: before})
    return field


def not_hashed(field: T) -> T:
    """The same `field`, left out of `hashable`: it says how long or how often something is tried,
    not what comes of it, and folders that were made before it existed keep their fingerprints."""
    assert isinstance(field, dataclasses.Field)
    field.metadata = MappingProxyType({**field.metadata, _NOT_HASHED: True})
    return field


def hashable(config: Any) -> dict[str, Any]:
    """The plain values of a dataclass, as they go into fingerprints."""
    values = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _NOT_HASHED in field.metadata:
            del values[field.name]
        elif dataclasses.is_dataclass(value):
            values[field.name] = hashable(value)
        elif _HASHED in field.metadata:
            values[field.name] = field.metadata[_HASHED].get(value, value)
    return values


def _field(default: T, bound: Bound) -> T:
    value: T = dataclasses.field(
        default=default, metadata={"allowed": bound.allowed, _BOUND: bound}
    )
    return value


def out_of_bounds(config: Any, name: str = "", without: Collection[str] = ()) -> list[str]:
    """Every value below `config` that breaks its bound, as `FULL.NAME = VALUE: what to give`.

    Args:
        config: a dataclass instance; dataclasses in its fields, and in lists of these, are walked.
        name: the full name of `config` itself, such as "train"; empty for a whole job.
        without: full names of fields and groups that are not looked at.
    """
    problems = []
    for full_name, field, value in _values(config, name):
        if any(full_name == left or full_name.startswith(f"{left}.") for left in without):
            continue
        bound: Bound | None = field.metadata.get(_BOUND)
        if bound is None or value is None or bound.holds(value):
            continue
        finite = bound.is_text or _is_finite(value)
        null = f"; null {bound.null}" if type(None) in typing.get_args(field.type) else ""
        shown = repr(value) if bound.is_text else value
        problems.append(
            f"{full_name} = {shown}: {bound.advice}" + ("" if finite else ", and finite") + null
        )
    return problems


def fixed_names(config: Any) -> dict[str, str]:
    """The full names of all values below `config` that are `fixed`, with the reasons."""
    return {
        name: field.metadata[_FIXED]
        for name, field, _ in _values(config, "")
        if _FIXED in field.metadata
    }


def changeable_names(config: Any, name: str = "") -> set[str]:
    """The full names of all values below `config` that a resumed run may change."""
    names: set[str] = set()
    for field in dataclasses.fields(config):
        value, full_name = getattr(config, field.name), _joined(name, field.name)
        may_change = field.metadata.get(_CHANGEABLE, False)
        if not dataclasses.is_dataclass(value):
            names |= {full_name} if may_change else set()
        elif may_change:
            names |= _leaves(value, full_name)
        else:
            names |= changeable_names(value, full_name)
    return names


def _leaves(config: Any, name: str) -> set[str]:
    leaves: set[str] = set()
    for field in dataclasses.fields(config):
        value, full_name = getattr(config, field.name), _joined(name, field.name)
        nested = dataclasses.is_dataclass(value)
        leaves |= _leaves(value, full_name) if nested else {full_name}
    return leaves


def _values(config: Any, name: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Full name, field and value of each field below `config` that is no group itself."""
    for field in dataclasses.fields(config):
        value, full_name = getattr(config, field.name), _joined(name, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, full_name)
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for number, element in enumerate(value):
                yield from _values(element, f"{full_name}[{number}]")
        else:
            yield full_name, field, value


def _joined(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field

"""Bounds beside fields: what holds, what is refused, and under which name."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from data_tools.config import SourcesConfig
from data_tools.config.sources import problems
from data_tools.ground.fields import (
    at_least,
    between,
    changeable,
    changeable_names,
    hashable,
    more_than,
    not_empty,
    not_hashed,
    null_hashed_as,
    out_of_bounds,
    share_below_1,
)


def inner() -> type:
    @dataclass(kw_only=True, slots=True)
    class Inner:
        low: int = at_least(1, default=2)
        positive: float = more_than(0, default=1.0)
        both: int = between(1, 3, default=2)
        part: float = share_below_1("of all", default=0.0)
        open_low: float = between(0, 1, low_open=True, default=1.0)
        within: float = between(0, 1, low_open=True, high_open=True, default=0.5)
        name: str = not_empty(default="a")
        free: int = 0

    return Inner


Inner = inner()


@dataclass(kw_only=True, slots=True)
class Hashed:
    off: int | None = null_hashed_as(0, at_least(0, default=None))
    patience_s: float = not_hashed(at_least(0, default=60.0))
    what: int = 3


def test_what_has_no_effect_is_not_hashed_and_null_is_hashed_as_before():
    assert hashable(Hashed()) == hashable(Hashed(patience_s=1.0)) == {"off": 0, "what": 3}
    assert out_of_bounds(Hashed(patience_s=-1.0), "a") == ["a.patience_s = -1.0: must be >= 0"]


@dataclass(kw_only=True, slots=True)
class Outer:
    one: Any = changeable(field(default_factory=Inner))
    many: list[Any] = field(default_factory=list)
    kept: int | None = changeable(at_least(1, default=None))
    fixed: int = 0


@pytest.mark.parametrize(
    ("name", "right", "wrong", "advice"),
    [
        ("low", [1, 10**9], [0, -1], "must be >= 1"),
        ("positive", [1e-9, 1e9], [0, 0.0, -1], "must be > 0"),
        ("both", [1, 3], [0, 4], "give 1 to 3"),
        ("part", [0, 0.99], [1, -0.1], "a share of all, give 0 or more, and less than 1"),
        ("open_low", [0.1, 1], [0, 1.1], "give more than 0, at most 1"),
        ("within", [0.1, 0.9], [0, 1], "give more than 0, below 1"),
        ("name", ["b"], ["", " "], "must not be empty"),
        ("free", [-1, math.inf], [], ""),
    ],
)
def test_a_bound_holds_or_is_named(name: str, right: Any, wrong: Any, advice: str) -> None:
    for value in right:
        assert out_of_bounds(Inner(**{name: value}), "g") == []
    for value in wrong:
        shown = repr(value) if isinstance(value, str) else value
        assert out_of_bounds(Inner(**{name: value}), "g") == [f"g.{name} = {shown}: {advice}"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bounded_number_is_finite(value: float) -> None:
    (problem,) = out_of_bounds(Inner(positive=value))
    assert problem == f"positive = {value}: must be > 0, and finite"


def test_groups_and_lists_of_groups_are_walked_and_null_is_named_where_it_may_be() -> None:
    job = Outer(one=Inner(low=0), many=[Inner(), Inner(both=9)], kept=0)
    assert out_of_bounds(job) == [
        "one.low = 0: must be >= 1",
        "many[1].both = 9: give 1 to 3",
        "kept = 0: must be >= 1; null turns it off",
    ]
    assert out_of_bounds(job, without=["one", "kept"]) == ["many[1].both = 9: give 1 to 3"]
    assert out_of_bounds(Outer()) == []


def test_a_group_may_change_with_all_that_is_in_it() -> None:
    names = {f"one.{name}" for name in Inner.__dataclass_fields__}
    assert changeable_names(Outer()) == names | {"kept"}


def test_what_omegaconf_gives_back_carries_its_bounds() -> None:
    back = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Inner), {"low": -5}))
    assert out_of_bounds(back) == ["low = -5: must be >= 1"]
    assert Inner.__dataclass_fields__["low"].metadata["allowed"] == ">= 1"


def test_a_source_that_is_not_asked_is_not_judged() -> None:
    config = SourcesConfig(contact="a@example.org")
    config.commons.enabled = True
    config.commons.requests_per_second = config.flickr.requests_per_second = 0
    config.pool.mature_above = -1
    assert problems(config) == ["sources.commons.requests_per_second = 0: must be >= 0.001"]

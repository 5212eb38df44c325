"""How a configuration says what is wrong with it: every problem at once."""

import math
from collections.abc import Iterable


class ConfigError(ValueError):
    """Every problem of a configuration at once; each line names the field, the value and the
    fix."""


def below(bounds: Iterable[tuple[str, float, float]]) -> list[str]:
    """A problem for each (field, value, lowest) whose value is below the lowest, or no number: nan
    is below nothing, and a deadline of inf is none."""
    return [
        f"{name} = {value}: must be >= {low}" + ("" if math.isfinite(value) else ", and finite")
        for name, value, low in bounds
        if value < low or not math.isfinite(value)
    ]
